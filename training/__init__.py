"""Programs that train what comes with the package."""

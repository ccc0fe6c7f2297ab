"""What a person sees: status lines, progress bars, tables; and the standard streams."""

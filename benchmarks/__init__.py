"""What is measured, and with what; results/ has the figures. Nothing here is in the wheel."""

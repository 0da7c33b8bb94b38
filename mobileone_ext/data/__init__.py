"""Images: found, checked, decoded and cropped; their classes by name; the digits of the demo."""

"""Pages that ``explain`` prints besides the causes' own: plain text, shipped with the package."""

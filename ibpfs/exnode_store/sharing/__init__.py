"""A file as a link: formats, keys, what a volume holds for others, fetching."""

"""A web server through which a browser opens links: it hands out sealed bytes, and learns no key and no name."""

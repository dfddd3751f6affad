"""Bytes near the reader: clean pieces, dirty extents, spool, readahead, flushing."""

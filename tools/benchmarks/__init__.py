"""`tools/bench`: how fast ibpfs and its depot are, beside what the same machine can do and beside its peers."""

"""Which bytes of which file are where, sealed how, until when."""

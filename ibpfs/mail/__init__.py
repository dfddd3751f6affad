"""Mail: attachments as links. Bytes of a message in, bytes of a message out; knows no terminal and no volume."""

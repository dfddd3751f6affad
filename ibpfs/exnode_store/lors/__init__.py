"""What LoRS does with exNodes, for people without a mount: upload, download, ls, augment, trim, refresh. No terminal."""

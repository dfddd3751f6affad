"""What LoRS does with exNodes, for people without a mount: upload, download, augment, trim, refresh. No terminal."""

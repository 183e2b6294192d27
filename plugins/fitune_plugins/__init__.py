"""The plugins that come with fitune, one file each, through the same hooks as anybody's."""

"""One file per cause: real clients in separate processes that make it happen, and its look-alike."""

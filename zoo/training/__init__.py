"""The one loop that trains every paper."""

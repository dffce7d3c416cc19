"""What is kept on disk by a server or a node: records in tables, and blobs as files."""

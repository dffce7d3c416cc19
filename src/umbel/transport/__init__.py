"""How two processes reach each other: streams of bytes, frames on them, the handshake, blobs."""

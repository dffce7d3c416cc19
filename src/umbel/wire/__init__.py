"""The frames that cross between processes, and how what they carry is turned into bytes and back."""

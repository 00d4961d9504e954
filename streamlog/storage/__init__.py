"""Bytes in LMDB: layouts, the environment, the log and its cleaner. No rules live here."""

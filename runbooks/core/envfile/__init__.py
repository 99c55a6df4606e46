"""Environment files: what their reader makes of them, and changing a variable without touching
another byte.

`read` and `edit` are in `edit.py`; a file for each reader: systemd's `EnvironmentFile=`, a shell's
`. FILE`, docker's `--env-file` and Compose's `env_file:`.
"""

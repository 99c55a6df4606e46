"""Environment files: how each reader understands them, and how to change one variable only.

`read` and `edit` are in `edit.py`. There is a module for each reader: systemd's `EnvironmentFile=`,
a shell's `. FILE`, docker's `--env-file` and Compose's `env_file:`.
"""

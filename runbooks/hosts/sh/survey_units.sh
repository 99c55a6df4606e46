#!/bin/sh
# survey_units.sh UNIT…
# What systemd says of how these units start what they start, and which environment files they read.
systemctl show --property=Id,FragmentPath,EnvironmentFiles,Environment,ExecStart,WorkingDirectory,User,UnitFileState,ActiveState -- "$@"

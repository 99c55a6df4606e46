#!/bin/sh
# survey_units.sh UNIT…
# Prints how systemd starts these units, and which environment files they read.
systemctl show --property=Id,FragmentPath,EnvironmentFiles,Environment,ExecStart,WorkingDirectory,User,UnitFileState,ActiveState -- "$@"

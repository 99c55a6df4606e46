#!/bin/sh
# unhold_unit.sh UNIT
# Undoes what a killed hold_unit.sh has left.
release_unit "$1" || exit 1

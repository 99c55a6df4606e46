# shellcheck shell=sh
# Turns a fresh Debian root file system into the image of the lab's hosts; runs inside it, once.
# What makes a host unique (host keys, machine id, names, passwords) is made when a fleet is put up.
set -eu

useradd --uid 1000 --create-home --shell /bin/bash deploy
useradd --uid 1001 --create-home --shell /bin/bash --gid operator --groups sudo operator
echo 'deploy ALL=(ALL:ALL) NOPASSWD: ALL' >/etc/sudoers.d/deploy
chmod 440 /etc/sudoers.d/deploy

rm -f /etc/ssh/ssh_host_* /var/lib/dbus/machine-id
: >/etc/machine-id
: >/etc/default/locale # without it pam_env complains in the journal at every login
cat >/etc/ssh/sshd_config.d/lab.conf <<'CONFIG'
# Every exec is logged, so round trips can be counted; many sessions may begin at once.
LogLevel VERBOSE
MaxStartups 100:30:200
PasswordAuthentication no
UseDNS no
CONFIG

systemctl --quiet disable redis-server.service
systemctl --quiet mask getty@.service console-getty.service apt-daily.timer apt-daily-upgrade.timer \
    e2scrub_all.timer e2scrub_reap.service fstrim.timer

python3 -m venv --without-pip /srv/venv

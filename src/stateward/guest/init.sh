#!/bin/busybox sh
# The first process of the tiny guest. It says on its console what happens to it, one line each:
#   stateward-guest: boot 3
#   stateward-guest: second disk: boot 2
#   stateward-guest: 1 processors, 71 MiB
#   stateward-guest: disk vdb 1024 MiB
#   stateward-guest: hostname web
#   stateward-guest: ssh key ssh-ed25519 AAAA... me@here
#   stateward-guest: up
#   stateward-guest: address 192.168.122.17
#   stateward-guest: user data ended with 0
#   stateward-guest: power button pressed
#   stateward-guest: agent asked to shut down
#   stateward-guest: password of root set, SHA-256 2bb8…
#   stateward-guest: file systems: freeze
#   stateward-guest: console: nproc
# A line typed at its console is said like that and then run by its shell.
#   stateward-guest: shutting down
#   stateward-guest: powered off
# Arguments of the kernel change what it does:
#   stateward.acpi=ignore         say that the power button was pressed, and stay up
#   stateward.shutdown=N          take N seconds to shut down
#   stateward.poweroff_after=N    power off N seconds after it is up
#   stateward.panic_after=N       crash N seconds after it is up
#   stateward.agent=answer|mute   hold the guest agent's channel, and answer there or not
#   stateward.agent=real          run Debian's qemu-guest-agent, which only the image tiny-guest-agent has
#   stateward.uptime=N            say every N seconds how long it has been up
# It reads the seed that cloud-init would, and runs user data that is a script, once it has an address if it has a
# network card at all.

say() {
	echo "stateward-guest: $*" >/dev/console
}

argument() {
	for word in $(cat /proc/cmdline); do
		case $word in "stateward.$1="*) echo "${word#*=}" ;; esac
	done
}

# Runs once, however often it is asked for.
shut_down() {
	mkdir /run/shutting-down 2>/dev/null || exit 0
	say "shutting down"
	sleep "$(argument shutdown || true)" 2>/dev/null
	sync
	umount /data
	say "powered off"
	poweroff -f
}

power_button() {
	say "power button pressed"
	[ "$(argument acpi)" = ignore ] || shut_down
}

# As much of the guest agent's protocol as libvirt needs to shut a guest down, on file 3.
agent() {
	while :; do
		# Nothing can be read while nobody holds the other end.
		read -r line <&3 || {
			usleep 100000
			continue
		}
		[ "$(argument agent)" = answer ] || continue
		case $line in
		*guest-sync*)
			case $line in *delimited*) printf '\377' >&3 ;; esac
			echo "$line" | sed 's/.*"id": *\([0-9]*\).*/{"return": \1}/' >&3
			;;
		*guest-shutdown*)
			say "agent asked to shut down"
			shut_down
			;;
		*) echo '{"error": {"class": "CommandNotFound", "desc": "unknown"}}' >&3 ;;
		esac
	done
}

# What Debian's agent has Debian's chpasswd do, with the lines "user:password" of its input.
set_passwords() {
	while IFS=: read -r user password; do
		printf '%s\n%s\n' "$password" "$password" | passwd -a sha512 "$user" >/dev/null || return 1
		say "password of $user set, SHA-256 $(printf '%s' "$password" | sha256sum | cut -c 1-64)"
	done
}

# What the network gave, told by the DHCP client.
address() {
	case $1 in bound | renew) ;; *) return ;; esac
	ip addr replace "$ip/$mask" dev "$interface"
	for gateway in $router; do ip route replace default via "$gateway"; done
	for server in $dns; do echo "nameserver $server"; done >/etc/resolv.conf
	[ "$1" != bound ] || say "address $ip"
}

# The seed is the disk with this file system; what else there is has none, or another.
mount_seed() {
	for disk in /dev/vd[b-z]; do
		[ -b "$disk" ] || continue
		[ -d /sys/module/isofs ] || load /modules/seed/*
		mount -t iso9660 -o ro "$disk" /seed 2>/dev/null && return
	done
	return 1
}

read_seed() {
	sed -n 's/^ "local-hostname": "\(.*\)",$/\1/p' /seed/meta-data >/etc/hostname
	read -r name </etc/hostname && hostname "$name" && say "hostname $name"
	sed -n '/^ "public-keys"/,/^ \]/s/^  "\(.*\)",*$/\1/p' /seed/meta-data | while read -r key; do
		say "ssh key $key"
	done
}

run_user_data() {
	[ "$(head -c 2 /seed/user-data)" = "#!" ] || return
	sed 's/\r$//' /seed/user-data >/run/user-data
	chmod 700 /run/user-data
	/run/user-data >/dev/console 2>&1
	say "user data ended with $?"
}

load() {
	for module in "$@"; do
		insmod "$module"
	done
}

# Handlers are this file under other names: of the power button, of the DHCP client, and what Debian's agent calls.
case $0 in
*/PWRF/*)
	power_button
	exit 0
	;;
*/shutdown)
	say "agent asked to shut down"
	# The agent waits for this name to end, not for the guest to be off.
	shut_down &
	exit 0
	;;
*/chpasswd)
	set_passwords
	exit
	;;
*/fsfreeze-hook)
	say "file systems: $1"
	exit 0
	;;
*/address)
	address "$1"
	exit 0
	;;
esac

/bin/busybox mkdir -p /proc /sys /dev /run /data /seed
/bin/busybox --install -s /bin
export PATH=/bin:/sbin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
load /modules/*.ko

if [ -b /dev/vda ]; then
	mount -t ext2 /dev/vda /data 2>/dev/null || {
		mke2fs /dev/vda >/dev/null 2>&1
		mount -t ext2 /dev/vda /data
	}
	boots=$(($(cat /data/boots 2>/dev/null || echo 0) + 1))
	echo "$boots" >/data/boots
	sync
	say "boot $boots"
fi
# What another guest, or this one before it was rescued, wrote on its disk.
if [ -b /dev/vdb ] && mkdir /other && mount -t ext2 -o ro /dev/vdb /other 2>/dev/null; then
	[ ! -f /other/boots ] || say "second disk: boot $(cat /other/boots)"
	umount /other
fi

say "$(nproc) processors, $(($(sed -n 's/^MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo) / 1024)) MiB"
for disk in /sys/block/vd*; do
	read -r sectors <"$disk/size"
	say "disk ${disk##*/} $((sectors / 2048)) MiB"
done
seeded=
mount_seed && seeded=yes && read_seed
# 0x0001 is a network card.
card=
grep -qx 0x0001 /sys/bus/virtio/devices/*/device 2>/dev/null && card=yes && load /modules/net/*

acpid -d >/dev/null 2>&1 &
acpid=$!
# Up means that a press of the button is heard from now on.
until ls -l "/proc/$acpid/fd" 2>/dev/null | grep -q /dev/input/event; do
	usleep 10000
done
case $(argument agent) in
real)
	qemu-ga --path=/dev/vport0p1 --statedir=/run --fsfreeze-hook=/sbin/fsfreeze-hook &
	qga=$!
	until ls -l "/proc/$qga/fd" 2>/dev/null | grep -q /dev/vport; do
		usleep 10000
	done
	;;
?*)
	exec 3<>/dev/vport0p1
	agent &
	;;
esac
say "up"

{
	if [ -n "$card" ]; then
		ip link set lo up
		ip link set eth0 up
		# It stays to renew; what follows needs the first address only.
		udhcpc -i eth0 -s /etc/address -R -t 10 -T 1 -A 5 >/dev/null 2>&1
	fi
	[ -z "$seeded" ] || run_user_data
} &
every=$(argument uptime)
[ -z "$every" ] || while :; do
	read -r seconds _ </proc/uptime
	say "uptime ${seconds%.*}"
	sleep "$every"
done &
after=$(argument poweroff_after)
[ -z "$after" ] || { sleep "$after" && shut_down; } &
after=$(argument panic_after)
[ -z "$after" ] || { sleep "$after" && echo c >/proc/sysrq-trigger; } &

while read -r line; do
	say "console: $line"
	sh -c "$line" </dev/null 2>&1
done </dev/console >/dev/console &

while :; do
	wait
	sleep 3600
done

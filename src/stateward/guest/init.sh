#!/bin/busybox sh
# The first process of the tiny guest. It says on its console what happens to it, one line each:
#   stateward-guest: boot 3
#   stateward-guest: up
#   stateward-guest: power button pressed
#   stateward-guest: agent asked to shut down
#   stateward-guest: password of root set, SHA-256 2bb8…
#   stateward-guest: file systems: freeze
#   stateward-guest: shutting down
#   stateward-guest: powered off
# Arguments of the kernel change what it does:
#   stateward.acpi=ignore         say that the power button was pressed, and stay up
#   stateward.shutdown=N          take N seconds to shut down
#   stateward.poweroff_after=N    power off N seconds after it is up
#   stateward.panic_after=N       crash N seconds after it is up
#   stateward.agent=answer|mute   hold the guest agent's channel, and answer there or not
#   stateward.agent=real          run Debian's qemu-guest-agent, which only the image tiny-guest-agent has

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

# The power button's handler and what Debian's agent calls are this file under other names.
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
esac

/bin/busybox mkdir -p /proc /sys /dev /run /data
/bin/busybox --install -s /bin
export PATH=/bin:/sbin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in /modules/*; do
	insmod "$module"
done

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

after=$(argument poweroff_after)
[ -z "$after" ] || { sleep "$after" && shut_down; } &
after=$(argument panic_after)
[ -z "$after" ] || { sleep "$after" && echo c >/proc/sysrq-trigger; } &

while :; do
	wait
	sleep 3600
done

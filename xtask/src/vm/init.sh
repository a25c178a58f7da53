#!/bin/busybox sh
# The guest's first process. What it prints goes to the console, what the job prints to a port of
# its own, and the job's exit status to another.
busybox() { /bin/busybox "$@"; }
stop() {
    echo "init: $1"
    busybox poweroff -f
}

while read -r module; do
    busybox insmod "/modules/$module" || stop "cannot load $module"
done < /modules/order
busybox mount -t devtmpfs dev /dev
busybox mount -t proc proc /proc
busybox mount -t sysfs sys /sys

# The files of the machine outside, under a layer that takes what is written.
busybox mount -t virtiofs -o ro host /lower || stop "no files from outside"
busybox mount -t ext4 /dev/vda /disk || stop "no disk"
busybox mkdir /disk/upper /disk/work
busybox mount -t overlay -o lowerdir=/lower,upperdir=/disk/upper,workdir=/disk/work overlay /root ||
    stop "no layer over the files from outside"

# As a Debian system has them.
busybox mount -t proc proc /root/proc
busybox mount -t sysfs sys /root/sys
busybox mount -t securityfs security /root/sys/kernel/security
busybox mount -t tracefs trace /root/sys/kernel/tracing
busybox mount -t bpf bpf /root/sys/fs/bpf
busybox mount -t cgroup2 cgroup /root/sys/fs/cgroup
echo "+memory +pids +cpu" > /root/sys/fs/cgroup/cgroup.subtree_control
busybox mount -t devtmpfs dev /root/dev
busybox mkdir -p /root/dev/pts /root/dev/shm
busybox mount -t devpts -o ptmxmode=666 pts /root/dev/pts
busybox mount -t tmpfs -o mode=1777 shm /root/dev/shm
busybox mount -t tmpfs -o mode=755 run /root/run
busybox ifconfig lo up
busybox swapon /dev/vdb || stop "no swap"
# A test reserves more than this machine has.
echo 1 > /proc/sys/vm/overcommit_memory

# The device of a port is numbered after those of the bus.
port() {
    for tries in 0 1 2 3 4 5 6 7 8 9; do
        for name in /sys/class/virtio-ports/*/name; do
            if [ "$(busybox cat "$name")" = "$1" ]; then
                device=${name%/name}
                echo "/dev/${device##*/}"
                return
            fi
        done
        busybox sleep 0.5
    done
}
output=$(port output)
status=$(port status)
[ -c "$output" ] && [ -c "$status" ] || stop "no ports to the outside"

busybox cp /job /root/run/job
if [ -e /systemd ]; then
    # systemd is the first process, and the job a service of it.
    busybox cp /bin/busybox /root/run/busybox
    busybox mkdir -p /root/run/systemd/system /root/run/tmpfiles.d
    # At boot systemd-tmpfiles(8) empties /tmp, where the clone may lie.
    busybox ln -s /dev/null /root/run/tmpfiles.d/tmp.conf
    busybox cat > /root/run/systemd/system/job.service <<END
[Unit]
DefaultDependencies=no
[Service]
Type=oneshot
TimeoutStartSec=infinity
ExecStart=/bin/sh -c '/bin/sh /run/job > $output 2>&1 < /dev/null; echo \$? > $status; exec /run/busybox poweroff -f'
END
    exec /bin/busybox switch_root /root /lib/systemd/systemd --unit=job.service --log-target=console
fi
busybox chroot /root /bin/sh /run/job > "$output" 2>&1 < /dev/null
echo "$?" > "$status"
busybox poweroff -f

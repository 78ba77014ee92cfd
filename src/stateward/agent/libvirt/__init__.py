"""The libvirt driver: the only package that imports ``libvirt``.

``connection`` keeps libvirtd reachable from threads of its own, ``guests`` holds the blocking calls on one guest,
``driver`` puts the two behind the driver contract, with ``disk_calls`` for the part about disks; ``xml``, ``states``,
``host``, ``disks``, ``backups`` and ``snapshots`` are what they need, and ``daemons`` starts a libvirtd where there is
none.
"""

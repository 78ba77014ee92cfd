"""The libvirt driver: the only package that imports ``libvirt``.

``connection`` keeps libvirtd reachable from threads of its own, ``guests`` holds the blocking calls on one guest,
``driver`` puts the two behind the driver contract; ``xml``, ``states``, ``host`` and ``disks`` are what they need,
and ``daemons`` starts a libvirtd where there is none.
"""

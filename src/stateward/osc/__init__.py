"""The plugin of python-openstackclient: ``openstack server lock …``, ``hold …`` and ``explain``."""

"""A very small guest to try Stateward with: made on the spot from Debian's packages, nothing of it is shipped.

It boots in seconds without hardware support in 96 MiB, answers its power button, keeps data on its disk, and says
on its console what happens to it.
"""

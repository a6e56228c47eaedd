"""Start every Python process of a bare run with the packages of the bare machine (`tests.bare.hook`)."""

from tests.bare import hook

hook.install()

"""The start-up file of bare runs is not a module to collect: to import it is to install the hook."""

collect_ignore = ["site"]

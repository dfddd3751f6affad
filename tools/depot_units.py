"""`ibpfs-depot units`: a service and a socket for systemd."""

import sys
from pathlib import Path

import click

from ibpfs_tools.commands import command, give_units

EPILOG = """\b
As root:
  ibpfs-depot units --directory /etc/systemd/system
  systemctl daemon-reload
  systemctl enable --now ibpfs-depot.socket ibpfs-depot.service
"""

SERVICE = """\
[Unit]
Description=IBP depot
Documentation=man:ibpfs-depot(8)
Wants=network-online.target
After=network-online.target

[Service]
Type=notify
ExecStart={program} --store /var/lib/ibpfs-depot{config}
ExecReload=kill -HUP $MAINPID
Restart=on-failure
RestartPreventExitStatus=2 3
TimeoutStartSec=15min
LimitNOFILE=65536
UMask=0077
DynamicUser=yes
StateDirectory=ibpfs-depot
StateDirectoryMode=0700
NoNewPrivileges=yes
PrivateTmp=yes
PrivateDevices=yes
ProtectSystem=strict
ProtectHome=read-only
ProtectClock=yes
ProtectHostname=yes
ProtectControlGroups=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
LockPersonality=yes
SystemCallArchitectures=native
CapabilityBoundingSet=

[Install]
WantedBy=multi-user.target
"""

SOCKET = """\
[Unit]
Description=Port of the IBP depot
Documentation=man:ibpfs-depot(8)

[Socket]
ListenStream={listen}
Backlog=1024
NoDelay=yes

[Install]
WantedBy=sockets.target
"""


@command("ibpfs-depot units", epilog=EPILOG)
@click.option("--directory", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="DIR",
              help="Write ibpfs-depot.service and ibpfs-depot.socket there, in place of printing them.")
@click.option("--config", type=click.Path(path_type=Path), metavar="FILE",
              help="The configuration file that the service is to use.")
@click.option("--listen", default="6714", show_default=True, metavar="[HOST:]PORT",
              help="Where the socket listens; a port alone is on all addresses of this machine.")
def units(directory: Path | None, config: Path | None, listen: str) -> None:
    """Print or write systemd units of a depot: a service, and the socket that is passed to it."""
    program = Path(sys.argv[0]).absolute()
    texts = {
        "ibpfs-depot.service": SERVICE.format(program=program, config=f" --config {config}" if config else ""),
        "ibpfs-depot.socket": SOCKET.format(listen=listen),
    }
    give_units(texts, directory)

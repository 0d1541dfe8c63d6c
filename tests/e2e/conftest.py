"""One mesh for all tests of promises: starting one takes longer than most of them."""

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.support.mesh import Client, Mesh, client_of

ACK_WAIT_S = 2.0
"""The lease: work of a process that was killed goes to another after this time."""


@pytest.fixture(scope="package")
def shared_mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """Two of each service."""
    mesh = Mesh(
        tmp_path_factory.mktemp("promises"),
        copies=2,
        ack_wait_s=ACK_WAIT_S,
        cancel_grace_s=0.3,
        heartbeat_s=1,
    )
    try:
        mesh.await_ready()
        yield mesh
    finally:
        code = mesh.close()
    assert code == 0, mesh.up.output[-4000:]


@pytest.fixture
async def mesh(shared_mesh: Mesh) -> Mesh:
    """With all its processes, whatever an earlier test has done to them."""
    await shared_mesh.whole()
    return shared_mesh


@pytest.fixture
async def client(mesh: Mesh) -> AsyncIterator[Client]:
    async with client_of(mesh) as client:
        yield client

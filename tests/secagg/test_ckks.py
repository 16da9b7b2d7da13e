"""Rounds in mode CKKS: exact whoever is lost, and refused where they cannot be."""

import ast
import itertools
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

import secagg
from secagg import (
    CountSegment,
    FixedSegment,
    Layout,
    Mode,
    Policy,
    RoundParams,
    SharedKey,
    Stage,
    open_client,
    open_server,
    run_key_setup,
    statement,
)
from secagg.ckks_presets import PRESETS
from secagg.ckks_scheme import CiphertextSum, SecretKey, _public_context
from secagg.errors import (
    BadKey,
    ConfigurationError,
    KeyMissing,
    Malformed,
    MarginExceeded,
    PolicyViolation,
    StaleState,
    TooFewReplies,
    TooFewSurvivors,
    UnsupportedSuite,
    WrongRound,
    WrongStage,
)
from secagg.inprocess import STAGES
from secagg.marks import Marks


@pytest.fixture(scope="module")
def world(federation):
    return federation(4, mode=Mode.CKKS)


@pytest.fixture(scope="module")
def verified(federation):
    return federation(4, mode=Mode.CKKS, verify_sum=True)


def outcome(world, lost):
    """What must happen, by the rules alone: the survivors, or the error that ends the round."""

    def left(stage):
        return [i for i in world.ids if i not in lost or STAGES[lost[i]] > stage]

    survivors = left(Stage.UPLOAD)
    if len(survivors) < 3:
        return TooFewSurvivors
    if world.verify_sum and len(left(Stage.CONFIRM)) < len(world.ids) // 2 + 1:
        return TooFewReplies
    return survivors if len(left(Stage.REVEAL)) >= 2 else TooFewReplies


def check(world, lost):
    expected = outcome(world, lost)
    if isinstance(expected, type):
        with pytest.raises(expected):
            world.run(lost)
        return
    aggregate = world.run(lost)
    assert aggregate.survivors == tuple(expected)
    for name, sums in world.total(expected).items():
        assert np.array_equal(aggregate.sums[name], sums)
    for client, stage in aggregate.dropped.items():
        missed = max(STAGES[lost[client]], Stage.UPLOAD)
        if missed is Stage.CONFIRM and not world.verify_sum:
            missed = Stage.REVEAL  # there is nothing to confirm
        assert stage == missed


@pytest.mark.parametrize("stage", ["upload", "reveal"])
@pytest.mark.parametrize("size", [0, 1, 2, 3])
def test_sum_is_exact_or_refused_for_every_subset_lost_at_one_stage(world, stage, size):
    for gone in itertools.combinations(world.ids, size):
        check(world, dict.fromkeys(gone, stage))


@pytest.mark.parametrize("stage", ["upload", "confirm", "reveal"])
@pytest.mark.parametrize("size", [0, 1, 2])
def test_verified_sum_is_exact_or_refused_for_every_subset_lost(verified, stage, size):
    for gone in itertools.combinations(verified.ids, size):
        check(verified, dict.fromkeys(gone, stage))


@pytest.mark.parametrize("stages", list(itertools.product(STAGES, repeat=2)))
def test_sum_is_exact_or_refused_for_every_pair_of_losses(world, stages):
    check(world, {10: stages[0], 40: stages[1]})


@pytest.mark.parametrize("preset", list(PRESETS))
def test_every_preset_is_exact_at_full_scale_with_counts_of_forty_bits(federation, preset):
    n = 4
    layout = Layout(
        (
            FixedSegment(name="delta", length=5000, clip=1.0, bits=24),
            CountSegment(name="samples", bound=2**40),
        )
    )
    world = federation(n, mode=Mode.CKKS, preset=preset, layout=layout)
    random = np.random.default_rng(3)
    grid = layout.fixed("delta").grid_max
    inputs = {}
    for client in world.ids:
        delta = random.integers(-grid, grid + 1, 5000)
        delta[:4] = grid, -grid, 0, 1
        inputs[client] = {"delta": delta, "samples": np.array([2**40 - client])}
    aggregate = secagg.run_round(
        world.server(),
        world.clients(),
        lambda client: secagg.Update(values=inputs[client]),
        context=world.params().context,
    )
    for name in ("delta", "samples"):
        total = np.sum([values[name] for values in inputs.values()], axis=0)
        assert np.array_equal(aggregate.sums[name], total)


def test_the_sum_of_as_many_full_scale_inputs_as_admitted_is_exact_and_one_more_wraps():
    preset = PRESETS["compact"]
    key = SecretKey.generate(preset)
    slots = np.full((1, preset.slots), preset.grid, np.int64)
    total = CiphertextSum(preset)
    for _ in range(preset.largest_cohort):
        total.add(key.encrypt(slots))
    assert np.array_equal(key.decrypt(total.to_blobs()), preset.largest_cohort * slots)
    total.add(key.encrypt(slots))
    with pytest.raises(MarginExceeded):  # -32 and a little, since the prime is not 2^40
        key.decrypt(total.to_blobs())


def test_more_clients_than_the_preset_adds_up_are_refused(federation):
    world = federation(32)
    key = SharedKey(PRESETS["compact"].code, bytes(32))
    with pytest.raises(ConfigurationError, match="at most 31"):
        world.params(mode=Mode.CKKS, shared_key=key)
    world.params(mode=Mode.CKKS, shared_key=SharedKey(PRESETS["wide"].code, bytes(32)))


def test_more_uploads_than_one_message_holds_cannot_be_verified(federation):
    layout = Layout((FixedSegment(name="delta", length=20_000_000, clip=1.0),))
    world = federation(10, layout=layout)
    key = SharedKey(PRESETS["compact"].code, bytes(32))
    world.params(mode=Mode.CKKS, shared_key=key)
    with pytest.raises(ConfigurationError, match="too many to verify"):
        world.params(mode=Mode.CKKS, shared_key=key, verify_sum=True)


def test_the_mode_and_the_key_go_together(federation):
    world = federation(4)
    with pytest.raises(ConfigurationError, match="shared key"):
        world.params(mode=Mode.CKKS)
    with pytest.raises(ConfigurationError, match="shared key"):
        world.params(mode=Mode.PLAIN, shared_key=SharedKey(1, bytes(32)))


def test_the_key_and_how_it_is_used_are_bound_into_the_rounds_digest(world):
    params = world.params()
    key = SharedKey(params.shared_key.preset, b"x" * 32)
    wide = SharedKey(PRESETS["wide"].code, params.shared_key.fingerprint)
    changes = ({}, {"shared_key": key}, {"shared_key": wide}, {"verify_sum": True})
    assert len({world.params(**change).digest for change in changes}) == 4


def test_the_digest_of_fixed_parameters_has_not_changed(federation):
    roster = secagg.Roster(
        coordinator=secagg.SigningKey(b"c" * 32).public,
        members=tuple(
            secagg.Identity(i, secagg.SigningKey(bytes([i]) * 32)).member() for i in (1, 2, 3)
        ),
    )
    params = RoundParams.for_round(
        mode=Mode.CKKS,
        roster=roster,
        layout=Layout((CountSegment(name="samples", bound=5),)),
        context=bytes(32),
        sequence=1,
        run_id=b"r" * 16,
        shared_key=SharedKey(1, b"f" * 32),
    )
    assert params.digest.hex() == "ebac76367efd7cfb3f41bf28178f9afccb2db6997d13f242b85f5af62b4b652d"


def test_all_rounds_of_a_run_use_one_key_until_the_next_set_up(federation):
    world = federation(3, mode=Mode.CKKS)
    clients = world.clients()
    for sequence in (1, 2):
        world.run(clients=clients, server=world.server(world.params(sequence)))
    old = world.epoch.key
    server = secagg.open_key_setup(
        coordinator=world.coordinator,
        roster=world.roster,
        run_id=world.params().run_id,
        sequence=3,
    )
    epoch = run_key_setup(server, clients)
    assert epoch.key != old
    world.run(clients=clients, server=world.server(world.params(4, shared_key=epoch.key)))
    with pytest.raises(KeyMissing):
        clients[10].handle(world.server(world.params(5, shared_key=old)).open()[10])


def test_a_client_without_the_key_refuses_the_round_and_says_why(world):
    client = world.client(10)
    client._held = None
    with pytest.raises(KeyMissing) as caught:
        client.handle(world.server().open()[10])
    assert caught.value.refusal is not None
    clients = world.clients()
    clients[10]._held = None
    aggregate = world.run(clients=clients)
    assert aggregate.refusals == {10: "KeyMissing"}


def test_a_key_of_another_run_is_not_used(world):
    params = msgspec.structs.replace(world.params(), run_id=b"another run     ")
    request = world.server(params).open()[10]
    with pytest.raises(KeyMissing):
        world.client(10).handle(request)


def test_a_client_that_requires_verified_sums_refuses_other_rounds(world):
    client = world.client(10, policy=Policy.ckks(world.layout, verify_sum=True))
    with pytest.raises(PolicyViolation, match="verify_sum"):
        client.handle(world.server().open()[10])


def test_sessions_are_opened_by_mode_and_a_restarted_one_needs_a_new_key(world):
    saved = []
    options = {
        "identity": world.identities[10],
        "roster": world.roster,
        "policy": Policy.ckks(world.layout),
        "save": saved.append,
    }
    client = open_client(Mode.CKKS, **options)
    client._held = world.held[10]
    request = (
        open_server(world.params(), coordinator=world.coordinator, roster=world.roster)
    ).open()[10]
    client.handle(request)
    restarted = open_client(Mode.CKKS, saved=saved[-1], **options)
    with pytest.raises(KeyMissing):
        restarted.handle(request)
    restarted._held = world.held[10]  # as if the key had been kept: the mark still refuses
    with pytest.raises(StaleState):
        restarted.handle(request)


def test_a_session_of_another_mode_refuses_the_round(world, federation):
    other = federation(4, mode=Mode.PLAIN)
    plain = world.client(10, secagg.plain.PlainClient)
    with pytest.raises(UnsupportedSuite):
        plain.handle(world.server().open()[10])
    with pytest.raises(UnsupportedSuite):
        other.client(10, secagg.ckks_client.CKKSClient).handle(other.server().open()[10])
    with pytest.raises(ConfigurationError):
        secagg.ckks_server.CKKSServer(other.params(), other.coordinator, other.roster)


def test_a_request_out_of_order_is_refused(world, verified):
    clients, server = verified.clients(), verified.server()
    requests = verified.run_until(Stage.CONFIRM, clients, server)
    with pytest.raises(WrongRound):
        verified.client(10).handle(requests[10])
    late = verified.client(10)
    late.handle(verified.server().open()[10])
    with pytest.raises(WrongStage):
        late.handle(requests[10])


def test_keys_of_other_parameters_do_not_load():
    for name, preset in PRESETS.items():
        data = SecretKey.generate(preset).to_bytes()
        SecretKey.from_bytes(data, preset)
        for other, wanted in PRESETS.items():
            if other != name:
                with pytest.raises(BadKey):
                    SecretKey.from_bytes(data, wanted)
        for bad in (b"", b"rubbish", data[: len(data) // 2]):
            with pytest.raises(BadKey):
                SecretKey.from_bytes(bad, preset)


def test_a_context_without_key_is_no_key():
    preset = PRESETS["wide"]
    public = _public_context(preset).serialize(
        save_public_key=False, save_secret_key=False, save_galois_keys=False, save_relin_keys=False
    )
    with pytest.raises(BadKey):
        SecretKey.from_bytes(public, preset)


def test_a_sum_of_which_one_blob_is_refused_is_as_before():
    preset = PRESETS["wide"]
    key = SecretKey.generate(preset)
    slots = np.arange(2 * preset.slots).reshape(2, -1)
    good = key.encrypt(slots)
    total = CiphertextSum(preset)
    total.add(good)
    for bad in (b"", good[0][:-900], b"\0" * len(good[0])):
        with pytest.raises(Malformed):
            total.add([good[0], bad])
    assert np.array_equal(key.decrypt(total.to_blobs()), slots)


def test_keys_print_their_type_and_do_not_pickle():
    key = SecretKey(None, PRESETS["wide"])
    assert repr(key) == "SecretKey"
    with pytest.raises(TypeError):
        key.__reduce__()


def test_importing_the_package_does_not_import_tenseal_and_one_module_alone_names_it():
    script = "import sys, secagg; sys.exit('tenseal' in sys.modules)"
    root = Path(secagg.__file__).parent
    done = subprocess.run([sys.executable, "-c", script], cwd=root.parent, check=False)
    assert done.returncode == 0
    users = set()
    for source in root.glob("*.py"):
        for node in ast.walk(ast.parse(source.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == "tenseal" for name in names):
                users.add(source.name)
    assert users == {"ckks_scheme.py"}


def test_nothing_is_printed_by_the_library_during_a_round(federation, capfd):
    layout = Layout((FixedSegment(name="delta", length=9000, clip=1.0),))
    world = federation(3, mode=Mode.CKKS, layout=layout)
    secagg.run_round(
        world.server(),
        world.clients(),
        lambda client: secagg.Update(values={"delta": np.zeros(9000)}),
        context=world.params().context,
    )
    assert capfd.readouterr() == ("", "")


def test_the_statement_of_each_mode_says_who_can_read_what():
    assert "the server sees every update" in statement(Mode.PLAIN)
    assert "the sum" in statement(Mode.MASKING)
    ckks = statement(Mode.CKKS)
    assert "together with any one client can read every update" in ckks
    assert "assumed to follow" in ckks
    assert "assumed" not in statement(Mode.CKKS, verify_sum=True)


def test_marks_of_a_set_up_and_of_rounds_share_one_count(federation):
    world = federation(3, mode=Mode.CKKS)
    saved = []
    client = world.client(10, save=saved.append)
    server = secagg.open_key_setup(
        coordinator=world.coordinator, roster=world.roster, run_id=b"r" * 16, sequence=7
    )
    request = server.open()[10]
    first = client.handle(request)
    assert client.handle(request) == first
    assert Marks.from_bytes(saved[-1]).runs[b"r" * 16].sequence == 7
    with pytest.raises(StaleState):
        world.client(10, marks=Marks.from_bytes(saved[-1])).handle(request)

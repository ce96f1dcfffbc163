"""headrace's loader in torch's place: what is replaced, what is not, and that it goes back."""

import gc
import multiprocessing
import pickle
import re
import sys
import types

import pytest
import torch
import torch.utils.data
from torch.utils.data import IterableDataset, TensorDataset
from torch.utils.data.dataloader import _SingleProcessDataLoaderIter

import headrace
from headrace import OptionError, installed
from headrace import loader as face  # face.STOCK: a name in here would be replaced too

DATA = TensorDataset(torch.arange(20))


@pytest.fixture(autouse=True)
def back_to_torch():
    yield
    headrace.uninstall()
    assert torch.utils.data.DataLoader is face.STOCK
    assert torch.utils.data.dataloader.DataLoader is face.STOCK


def module_with(source: str) -> types.ModuleType:
    module = types.ModuleType("a_library")
    sys.modules["a_library"] = module
    exec(source, vars(module))
    return module


@pytest.fixture
def library():
    """A module that was imported before, with torch's class under names of its own."""
    gc.collect()  # the classes of the test before
    yield module_with(
        "import torch.utils.data\n"
        "from torch.utils.data import DataLoader\n"
        "from torch.utils.data import DataLoader as Loader\n"
        "class Derived(DataLoader):\n"
        "    def __init__(self, *args, more=1, **kwargs):\n"
        "        self.more = more\n"
        "        super().__init__(*args, **kwargs)\n"
        "class Further(Derived): pass\n"
        "class Own(DataLoader):\n"
        "    def _get_iterator(self): return iter(['its own'])\n"
        "def make(*args, **kwargs): return torch.utils.data.DataLoader(*args, **kwargs)\n"
    )
    del sys.modules["a_library"]


def order(loader):
    return [batch[0].tolist() for batch in loader]


def test_every_name_of_torchs_class_is_ours_and_goes_back(library):
    report = headrace.install(quiet=True)
    assert torch.utils.data.DataLoader is headrace.DataLoader
    assert torch.utils.data.dataloader.DataLoader is headrace.DataLoader
    assert library.DataLoader is library.Loader is headrace.DataLoader
    assert type(library.make(DATA)) is headrace.DataLoader
    assert {"torch.utils.data.DataLoader", "a_library.DataLoader", "a_library.Loader"} <= set(
        report.names
    )
    headrace.uninstall()
    assert library.DataLoader is library.Loader is face.STOCK


HELD = {
    "a default": ("def make(dataset, cls=DataLoader): return cls(dataset)", "make(DATA)"),
    "a default by keyword": ("def make(*, cls=DataLoader): return cls", "make()(DATA)"),
    "a default of several": (
        "def make(first, a=DataLoader, b=3, c=DataLoader): return (a, c)[first]",
        "make(0)(DATA), make(1)(DATA)",
    ),
    "a default of a method": (
        "class Maker:\n    def make(self, cls=DataLoader): return cls(DATA)",
        "Maker().make()",
    ),
    "an attribute of a class": (
        "class Maker: loader_class = DataLoader",
        "Maker.loader_class(DATA)",
    ),
    "an attribute of an object": (
        "class Maker:\n    def __init__(self): self.kind = DataLoader\nmaker = Maker()",
        "maker.kind(DATA)",
    ),
    "a field of a dataclass": (
        "import dataclasses\n@dataclasses.dataclass(frozen=True)\nclass Config:\n"
        "    kind: type = DataLoader\nconfig = Config()",
        "config.kind(DATA), Config().kind(DATA), Config.kind(DATA)",
    ),
    "a registry": ("LOADERS = {'torch': DataLoader}", "LOADERS['torch'](DATA)"),
    "a registry inside another": (
        "CONFIG = {'train': {'loaders': [None, DataLoader]}}",
        "CONFIG['train']['loaders'][1](DATA)",
    ),
    "a registry of a class": (
        "class Registry:\n    known = {}\nRegistry.known['torch'] = DataLoader",
        "Registry.known['torch'](DATA)",
    ),
    "a tuple": ("KINDS = (int, DataLoader)", "KINDS[1](DATA)"),
    "a partial": (
        "import functools\nmake = functools.partial(DataLoader, batch_size=3)",
        "make(DATA)",
    ),
    "a closure": (
        "def factory(cls):\n    def make(): return cls(DATA)\n    return make\n"
        "make = factory(DataLoader)",
        "make()",
    ),
}


@pytest.mark.parametrize("source", HELD)
def test_whatever_holds_torchs_class_holds_ours_and_goes_back(library, source):
    written, made = HELD[source]
    vars(library)["DATA"] = DATA
    exec(written.replace("DataLoader", "torch.utils.data.DataLoader"), vars(library))

    def kinds():
        loaders = eval(made, vars(library))
        return {type(one) for one in (loaders if isinstance(loaders, tuple) else (loaders,))}

    assert kinds() == {face.STOCK}
    report = headrace.install(quiet=True)
    assert kinds() == {headrace.DataLoader}
    assert report.held
    assert not [name for name in report.unreached if "a_library" in name]
    headrace.uninstall()
    assert kinds() == {face.STOCK}


def test_annotations_bases_and_super_stay_as_they_are(library):
    exec(
        "def look(loader: torch.utils.data.DataLoader) -> None: pass\n"
        "class Derived(DataLoader):\n"
        "    def __len__(self): return super().__len__() + 1\n",
        vars(library),
    )
    with installed():
        assert library.look.__annotations__["loader"] is face.STOCK
        assert len(library.Derived(DATA)) == 21
    assert len(library.Derived(DATA)) == 21


def test_what_cannot_be_replaced_is_said(library, capsys):
    class Fixed(type):
        def __setattr__(cls, name, value):
            raise AttributeError(name)

    library.Fixed = Fixed
    exec("class Config(metaclass=Fixed): kind = torch.utils.data.DataLoader", vars(library))
    report = headrace.install()
    assert "not reached: a_library.Config.kind" in capsys.readouterr().err
    assert report.unreached == ("a_library.Config.kind",)
    assert "a_library.Config.kind: holds torch's class" in report.details()


def test_derived_classes_become_ours_and_go_back(library):
    before = library.Derived(DATA, 4, more=2)
    report = headrace.install(quiet=True)
    for kind in (library.Derived, library.Further):
        loader = kind(DATA, 4, more=3)
        assert isinstance(loader, headrace.DataLoader)
        assert loader.more == 3
        assert order(loader)[0] == [0, 1, 2, 3]
        assert loader.statistics().batches == 5
    assert order(before)[1] == [4, 5, 6, 7]  # made by torch's constructor
    assert before.statistics().batches == 5
    assert before.state_dict()["global_batch"] == 4
    assert "a_library.Derived" in report.classes
    headrace.uninstall()
    assert not issubclass(library.Derived, headrace.DataLoader)
    assert order(before)[1] == [4, 5, 6, 7]


def test_a_class_that_makes_its_iterators_itself_is_left_alone_and_said(library, capsys):
    report = headrace.install()
    assert library.Own.__bases__ == (face.STOCK,)
    assert list(library.Own(DATA)) == ["its own"]
    assert "a_library.Own" in report.left_alone
    assert "a_library.Own" not in report.classes
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert re.search(r"left with torch: .*a_library\.Own", said[0])


def test_verbose_names_all(library, capsys):
    library._SingleProcessDataLoaderIter = _SingleProcessDataLoaderIter
    headrace.install(verbose=True)
    said = capsys.readouterr().err
    for line in (
        "  a_library.Loader: replaced",
        "  a_library.Derived: derived from headrace's loader now",
        "  a_library.Own: left with torch: it makes its iterators itself",
        "  a_library: names torch's private iterators",
    ):
        assert f"headrace: {line}" in said


def test_instances_and_subclasses_hold_both_ways(library):
    theirs = face.STOCK(DATA)
    headrace.install(quiet=True)
    ours = torch.utils.data.DataLoader(DATA)
    for kind in (face.STOCK, torch.utils.data.DataLoader):
        assert isinstance(ours, kind)
        assert isinstance(theirs, kind)
        assert isinstance(library.Own(DATA), kind)
        assert issubclass(headrace.DataLoader, kind)
        assert issubclass(face.STOCK, kind)
        assert not isinstance(DATA, kind)
    headrace.uninstall()
    assert not isinstance(theirs, headrace.DataLoader)
    assert not issubclass(face.STOCK, headrace.DataLoader)


def test_what_is_loaded_later_follows_and_goes_back():
    headrace.install(quiet=True)
    try:
        later = module_with("from torch.utils.data import DataLoader")
        assert later.DataLoader is headrace.DataLoader
    finally:
        del sys.modules["a_library"]


def test_a_module_file_loaded_meanwhile_goes_back_unless_it_means_ours(tmp_path, monkeypatch):
    (tmp_path / "took_torchs.py").write_text(
        "from torch.utils.data import DataLoader\n"
        "KNOWN = {'torch': DataLoader}\n"
        "def make(cls=DataLoader): return cls\n"
    )
    (tmp_path / "took_ours.py").write_text("from headrace import DataLoader\n")
    monkeypatch.syspath_prepend(tmp_path)
    with installed():
        import took_ours
        import took_torchs

        assert took_torchs.DataLoader is headrace.DataLoader
    assert took_torchs.DataLoader is took_torchs.make() is face.STOCK
    assert took_torchs.KNOWN == {"torch": face.STOCK}
    assert took_ours.DataLoader is headrace.DataLoader


def test_the_same_order_as_torchs():
    torch.manual_seed(5)
    theirs = order(face.STOCK(DATA, 3, shuffle=True))
    with installed():
        torch.manual_seed(5)
        assert order(torch.utils.data.DataLoader(DATA, 3, shuffle=True)) == theirs


def test_options_are_for_all_loaders_where_the_program_gives_none():
    headrace.install(quiet=True, seed=7, num_workers=2, backend="thread", worker_restarts=1)
    loader = torch.utils.data.DataLoader(DATA, 4, True, None, None, 0)
    assert (loader.seed, loader.num_workers, loader.backend) == (7, 2, "thread")
    assert loader.worker_restarts == 1
    ours = headrace.DataLoader(DATA, seed=8, backend="process")
    assert (ours.seed, ours.backend) == (8, "process")
    headrace.uninstall()
    assert headrace.DataLoader(DATA).seed is None


def test_no_workers_leaves_out_what_only_workers_have():
    headrace.install(quiet=True, num_workers=0)
    loader = torch.utils.data.DataLoader(
        DATA, num_workers=4, persistent_workers=True, prefetch_factor=4, timeout=3
    )
    assert loader.num_workers == 0
    assert not loader.persistent_workers
    assert len(order(loader)) == 20


def test_threads_are_for_the_loaders_that_they_can_serve():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(range(4))

    headrace.install(quiet=True, backend="thread")
    assert torch.utils.data.DataLoader(DATA).backend == "auto"  # it has no workers
    assert torch.utils.data.DataLoader(DATA, num_workers=2).backend == "thread"
    assert torch.utils.data.DataLoader(Stream(), num_workers=2).backend == "auto"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sead": 1}, "knows no option sead=. There are: num_workers, seed"),
        ({"shard": "auto"}, "knows no option shard="),
        ({"backend": "rocket", "num_workers": 2}, "is not one of"),
        ({"device": "cuda:99"}, "is not here"),
    ],
)
def test_options_that_cannot_be_are_refused_before_anything_is_replaced(options, message):
    with pytest.raises(OptionError, match=message):
        headrace.install(quiet=True, **options)
    assert torch.utils.data.DataLoader is face.STOCK


def test_a_wrong_call_says_what_torchs_says():
    headrace.install(quiet=True, seed=1)
    with pytest.raises(TypeError, match="num_worker"):
        torch.utils.data.DataLoader(DATA, num_worker=2)


def test_blocks_nest():
    with installed(seed=1):
        with installed(seed=2):
            assert torch.utils.data.DataLoader(DATA).seed == 2
        assert torch.utils.data.DataLoader(DATA).seed == 1
    assert torch.utils.data.DataLoader is face.STOCK
    headrace.install(quiet=True, seed=3)
    with installed():
        assert torch.utils.data.DataLoader(DATA).seed is None
    assert torch.utils.data.DataLoader(DATA).seed == 3


def test_an_error_in_a_block_undoes_it():
    with pytest.raises(ZeroDivisionError), installed():
        raise ZeroDivisionError
    assert torch.utils.data.DataLoader is face.STOCK


def test_loaders_are_pickled_whoever_made_them():
    ours, theirs = headrace.DataLoader(DATA, 4), pickle.dumps(face.STOCK(DATA, 5))
    headrace.install(quiet=True)
    assert order(pickle.loads(pickle.dumps(ours)))[1] == [4, 5, 6, 7]
    loader = pickle.loads(theirs)  # torch's name for it is ours now
    assert type(loader) is headrace.DataLoader
    assert order(loader)[1] == [5, 6, 7, 8, 9]
    built = pickle.dumps(torch.utils.data.DataLoader(DATA, 6))
    headrace.uninstall()
    assert type(pickle.loads(built)) is headrace.DataLoader


def tell_class(queue, loader):
    name = torch.utils.data.DataLoader
    queue.put((name.__module__, type(loader).__module__, order(loader)))


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_processes_that_are_started_have_it_too(method):
    headrace.install(quiet=True)
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    loader = torch.utils.data.DataLoader(DATA, 10)
    process = context.Process(target=tell_class, args=(queue, loader))
    process.start()
    name, kind, batches = queue.get(timeout=60)
    process.join()
    assert name == kind == "headrace.loader"
    assert batches == [list(range(10)), list(range(10, 20))]

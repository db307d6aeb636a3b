"""The protocols besides the paper's, by the names that study files hold; conditions are run in this order."""

from hookedvid.study.protocols.adaptive_exit import AdaptiveExits
from hookedvid.study.protocols.attribution import Attribution
from hookedvid.study.protocols.counterfactual import Counterfactual
from hookedvid.study.protocols.dose import Dose
from hookedvid.study.protocols.heads import Heads
from hookedvid.study.protocols.protocol import Protocol
from hookedvid.study.protocols.pruning import Pruning
from hookedvid.study.protocols.tracing import Tracing

REGISTRY: dict[str, Protocol] = {
    p.name: p for p in (Heads(), Dose(), Pruning(), AdaptiveExits(), Counterfactual(), Tracing(), Attribution())
}

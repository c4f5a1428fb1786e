"""Look rows up in a part of a table, zeros for those that other parts have."""

from ark_dist.core.dtype import ALL_DTYPES
from ark_dist.core.op import Kernel, Op, register
from ark_dist.kernels.ops import embedding
from ark_dist.kernels.rules import map_tiles

register(
    Op(
        name="embedding_part",
        summary="Look rows up as `embedding` does in a part of a table.",
        arguments=embedding.ARGUMENTS,
        dtypes=ALL_DTYPES,
        infer=embedding.result_spec,
        view=None,
        in_boxes=embedding.in_boxes,
        reference=embedding.reference,
        tiles=map_tiles,
        cost=embedding.cost,
        sharding=None,
        localize=None,
        gradient=None,
        effect="none",
        kernel=Kernel(
            "tile", "ark_embedding_part", params=("first_row", "rows"), failure=embedding.FAILURE
        ),
        expand=None,
        parts=None,
        pieces=None,
        is_public=False,
    )
)

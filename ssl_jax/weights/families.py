"""How transformers spells the models that we have: settings in config.json, names of modules.

Everything here was read in transformers 5.24.0 (models/*/modeling_*.py and configuration_*.py), and
`benchmarks/weights_parity.py` compares the outcome with it, family by family.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from flax import linen as nn

from ssl_jax.models import language_heads
from ssl_jax.models.transformer import ARCHITECTURES, Architecture

# By kind, our head. An 'encoder' comes without one, and has ours without parameters.
HEADS = dict(
  encoder=language_heads.tied, tied=language_heads.tied, masked=language_heads.masked_lm,
  sentence=language_heads.masked_lm_and_sentence, replaced=language_heads.replaced_token)
# Initial values and rates do not change the function that is computed.
_TRAINING = ('init', 'deviation', 'position_deviation', 'residual_scale', 'dropout',
             'attention_dropout')
_GELU = dict(gelu='gelu', gelu_new='gelu_tanh', gelu_python='gelu', gelu_pytorch_tanh='gelu_tanh',
             gelu_fast='gelu_tanh', gelu_accurate='gelu_tanh')


class WeightsError(ValueError):
  """Weights that do not fit the model that is to hold them."""


def _nothing(values: Any) -> dict[str, Any]:
  return {}


class Family(NamedTuple):
  """One model_type of transformers.

  Attributes:
    heads: which head each class of transformers has; the first with ours is written.
    prefix: of the encoder's tensors in a file of a model with a head; without one there is none.
    base: the fields where config.json says nothing: the defaults of transformers.
    keys: by field of `Architecture`, the key in config.json.
    activation: the key of the activation, and in `activations` what its values are to us.
    required: values in config.json, where it has them, that our function is limited to.
    modules: by path in our parameters, the modules of transformers; `by_head` what differs.
    layers, block: the list of blocks, and by our name the modules in each; several where we fuse.
    dropped: by head, patterns of tensors that a file may have and the model has not. What is
      outside of `prefix` is dropped for an encoder.
    tied: tensors that a file may repeat, by the one they equal.
    transposed: whether kernels are [out, in], as torch.nn.Linear's.
    exact_head: whether the head's GELU is exact whatever the activation.
    pooler: a module [D, D] that transformers puts on a bare encoder.
    read, write: further fields from config.json, and further settings from the fields; both may
      raise WeightsError.
  """

  heads: Mapping[str, str]
  prefix: str
  base: Architecture
  keys: Mapping[str, str]
  activation: str
  required: Mapping[str, Any]
  modules: Mapping[str, str]
  layers: str
  block: Mapping[str, tuple[str, ...]]
  tied: Mapping[str, str]
  by_head: Mapping[str, Mapping[str, str]] = {}
  dropped: Mapping[str, tuple[str, ...]] = {}
  activations: Mapping[str, str] = _GELU
  transposed: bool = True
  exact_head: bool = False
  pooler: str | None = None
  read: Callable[[Mapping[str, Any]], dict[str, Any]] = _nothing
  write: Callable[[Architecture], dict[str, Any]] = _nothing

  def named(self, head: str) -> dict[str, str]:
    """The modules of a model with this head, without the blocks."""
    return {**self.modules, **self.by_head.get(head, {})}


# --- BERT and those like it -----------------------------------------------------------------------

_BERT_KEYS = dict(
  vocabulary='vocab_size', width='hidden_size', depth='num_hidden_layers',
  heads='num_attention_heads', hidden='intermediate_size', length='max_position_embeddings',
  types='type_vocab_size', epsilon='layer_norm_eps', deviation='initializer_range',
  dropout='hidden_dropout_prob', attention_dropout='attention_probs_dropout_prob')
_BERT_REQUIRED = dict(
  position_embedding_type='absolute', is_decoder=False, add_cross_attention=False)
_BERT_BLOCK = dict(
  qkv=('attention.self.query', 'attention.self.key', 'attention.self.value'),
  proj=('attention.output.dense',), norm1=('attention.output.LayerNorm',),
  fc1=('intermediate.dense',), fc2=('output.dense',), norm2=('output.LayerNorm',))


def _bert_modules(prefix: str, **head: str) -> dict[str, str]:
  embed = dict(tokens='word_embeddings', types='token_type_embeddings',
               positions='position_embeddings', norm='LayerNorm')
  return {**{f'backbone/embed/{ours}': f'{prefix}.embeddings.{name}'
             for ours, name in embed.items()},
          **{ours.replace('_', '/'): name for ours, name in head.items()}}


def _with_types(a: Architecture) -> dict[str, Any]:
  if not a.types:
    raise WeightsError('a table of sentence types is needed')
  return {}


def _after_padding(config: Mapping[str, Any]) -> dict[str, Any]:
  """RoBERTa counts positions from the one behind the id of padding."""
  pad = config.get('pad_token_id', 1)
  if not isinstance(pad, int):
    raise WeightsError(f'config.json: pad_token_id must be an integer, not {pad!r}')
  return dict(first_position=pad + 1)


_BERT = Family(
  heads=dict(BertModel='encoder', BertForMaskedLM='masked', BertForPreTraining='sentence'),
  prefix='bert', base=ARCHITECTURES['bert_base'], keys=_BERT_KEYS, activation='hidden_act',
  required=_BERT_REQUIRED,
  modules=_bert_modules(
    'bert', head='cls.predictions', head_dense='cls.predictions.transform.dense',
    head_norm='cls.predictions.transform.LayerNorm', head_pooler='bert.pooler.dense',
    head_sentence='cls.seq_relationship'),
  layers='bert.encoder.layer', block=_BERT_BLOCK,
  tied={'cls.predictions.decoder.weight': 'bert.embeddings.word_embeddings.weight',
        'cls.predictions.decoder.bias': 'cls.predictions.bias'},
  # bert-base-uncased itself calls a file with both BertForMaskedLM.
  dropped=dict(encoder=(r'bert\.embeddings\.position_ids', r'bert\.pooler\.dense\.(weight|bias)'),
               masked=(r'bert\.embeddings\.position_ids', r'bert\.pooler\.dense\.(weight|bias)',
                       r'cls\.seq_relationship\.(weight|bias)'),
               sentence=(r'bert\.embeddings\.position_ids',)),
  pooler='bert.pooler.dense', write=_with_types)

_ROBERTA_DROPPED = (r'roberta\.embeddings\.position_ids', r'roberta\.pooler\.dense\.(weight|bias)')
_ROBERTA = _BERT._replace(
  heads=dict(RobertaModel='encoder', RobertaForMaskedLM='masked'), prefix='roberta',
  base=ARCHITECTURES['roberta_base']._replace(length=512, types=2, epsilon=1e-12),
  modules=_bert_modules('roberta', head='lm_head', head_dense='lm_head.dense',
                        head_norm='lm_head.layer_norm'),
  layers='roberta.encoder.layer',
  tied={'lm_head.decoder.weight': 'roberta.embeddings.word_embeddings.weight',
        'lm_head.decoder.bias': 'lm_head.bias'},
  dropped=dict(encoder=_ROBERTA_DROPPED, masked=_ROBERTA_DROPPED),
  exact_head=True, pooler='roberta.pooler.dense', read=_after_padding)

def _electra_settings(a: Architecture) -> dict[str, Any]:
  return dict(embedding_size=a.embedding or a.width, **_with_types(a))


_ELECTRA_DROPPED = (r'electra\.embeddings\.position_ids',)
_ELECTRA = _BERT._replace(
  heads=dict(ElectraModel='encoder', ElectraForPreTraining='replaced', ElectraForMaskedLM='masked'),
  prefix='electra', base=ARCHITECTURES['electra_small'],
  keys={**_BERT_KEYS, 'embedding': 'embedding_size'},
  modules=_bert_modules(
    'electra', head='generator_lm_head', head_dense='generator_predictions.dense',
    head_norm='generator_predictions.LayerNorm',
    backbone_embed_project='electra.embeddings_project'),
  by_head=dict(replaced={'head/dense': 'discriminator_predictions.dense',
                         'head/logit': 'discriminator_predictions.dense_prediction'}),
  layers='electra.encoder.layer',
  tied={'generator_lm_head.weight': 'electra.embeddings.word_embeddings.weight'},
  dropped={head: _ELECTRA_DROPPED for head in ('encoder', 'masked', 'replaced')}, exact_head=True,
  pooler=None, write=_electra_settings)

_DISTILBERT = Family(
  heads=dict(DistilBertModel='encoder', DistilBertForMaskedLM='masked'), prefix='distilbert',
  base=ARCHITECTURES['distilbert'], activation='activation', required={},
  keys=dict(vocabulary='vocab_size', width='dim', depth='n_layers', heads='n_heads',
            hidden='hidden_dim', length='max_position_embeddings', deviation='initializer_range',
            dropout='dropout', attention_dropout='attention_dropout'),
  modules=_bert_modules('distilbert', head='vocab_projector', head_dense='vocab_transform',
                        head_norm='vocab_layer_norm'),
  layers='distilbert.transformer.layer',
  block=dict(qkv=('attention.q_lin', 'attention.k_lin', 'attention.v_lin'),
             proj=('attention.out_lin',), norm1=('sa_layer_norm',), fc1=('ffn.lin1',),
             fc2=('ffn.lin2',), norm2=('output_layer_norm',)),
  tied={'vocab_projector.weight': 'distilbert.embeddings.word_embeddings.weight'},
  dropped={head: (r'distilbert\.embeddings\.position_ids',) for head in ('encoder', 'masked')})


# --- GPT-2 ----------------------------------------------------------------------------------------


def _gpt2_hidden(config: Mapping[str, Any]) -> dict[str, Any]:
  return dict(hidden=config.get('n_inner') or 4 * config.get('n_embd', 768))


def _gpt2_settings(a: Architecture) -> dict[str, Any]:
  return dict(n_inner=a.hidden, embd_pdrop=a.dropout)


# The masks of causal attention, which old files hold.
_GPT2_DROPPED = (r'transformer\.h\.\d+\.attn\.(masked_)?bias',)
_GPT2 = Family(
  heads=dict(GPT2LMHeadModel='tied', GPT2Model='encoder'), prefix='transformer',
  base=ARCHITECTURES['gpt2'], activation='activation_function',
  keys=dict(vocabulary='vocab_size', width='n_embd', depth='n_layer', heads='n_head',
            length='n_positions', epsilon='layer_norm_epsilon', deviation='initializer_range',
            dropout='resid_pdrop', attention_dropout='attn_pdrop'),
  required=dict(scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False,
                add_cross_attention=False),
  modules={'backbone/embed/tokens': 'transformer.wte', 'backbone/norm': 'transformer.ln_f',
           'backbone/embed/positions': 'transformer.wpe'},
  layers='transformer.h',
  block=dict(norm1=('ln_1',), qkv=('attn.c_attn',), proj=('attn.c_proj',), norm2=('ln_2',),
             fc1=('mlp.c_fc',), fc2=('mlp.c_proj',)),
  tied={'lm_head.weight': 'transformer.wte.weight'},
  dropped=dict(encoder=_GPT2_DROPPED, tied=_GPT2_DROPPED),
  transposed=False, read=_gpt2_hidden, write=_gpt2_settings)


# --- ModernBERT -----------------------------------------------------------------------------------

_ATTENTIONS = ('full_attention', 'sliding_attention')
_THETAS = dict(full_attention=('global_rope_theta', 160_000.),
               sliding_attention=('local_rope_theta', 10_000.))


def _modern_fields(config: Mapping[str, Any]) -> dict[str, Any]:
  layers = config.get('layer_types')
  every = config.get('global_attn_every_n_layers', 3) if layers is None else _period(layers)
  thetas = {name: _theta(config, kind) for name, kind in zip(('theta', 'local_theta'), _ATTENTIONS)}
  window = config.get('local_attention', 128) if every > 1 else None
  return dict(window=window, global_every=every, **thetas)


def _period(layers: list[str]) -> int:
  """Every how many blocks attention is global; 1: in all."""
  for every in range(1, len(layers) + 1):
    if layers == [_ATTENTIONS[bool(i % every)] for i in range(len(layers))]:
      return every
  raise WeightsError(f'layer_types must be full_attention in every n-th layer from the first and '
                     f'else sliding_attention, not {layers}')


def _theta(config: Mapping[str, Any], kind: str) -> float:
  """The base of rotary frequencies, as transformers 5 writes it, or as 4 did."""
  rope = (config.get('rope_parameters') or {}).get(kind) or {}
  if rope.get('rope_type', 'default') != 'default':
    raise WeightsError(f'rope_type must be default, not {rope["rope_type"]!r}')
  old, default = _THETAS[kind]
  return float(rope.get('rope_theta', config.get(old, default)))


def _modern_settings(a: Architecture) -> dict[str, Any]:
  # As transformers 4 wrote them, which 5 reads.
  return dict(
    global_attn_every_n_layers=a.global_every if a.window else 1, local_attention=a.window or 128,
    global_rope_theta=a.theta, local_rope_theta=a.local_theta, embedding_dropout=a.dropout)


_MODERNBERT = Family(
  heads=dict(ModernBertModel='encoder', ModernBertForMaskedLM='masked'), prefix='model',
  base=ARCHITECTURES['modernbert_base'], activation='hidden_activation',
  keys=dict(vocabulary='vocab_size', width='hidden_size', depth='num_hidden_layers',
            heads='num_attention_heads', hidden='intermediate_size',
            length='max_position_embeddings', epsilon='norm_eps', deviation='initializer_range',
            dropout='mlp_dropout', attention_dropout='attention_dropout'),
  required=dict(norm_bias=False, attention_bias=False, mlp_bias=False, classifier_bias=False,
                decoder_bias=True, classifier_activation='gelu', rope_scaling=None),
  modules={'backbone/embed/tokens': 'model.embeddings.tok_embeddings',
           'backbone/embed/norm': 'model.embeddings.norm', 'backbone/norm': 'model.final_norm',
           'head': 'decoder', 'head/dense': 'head.dense', 'head/norm': 'head.norm'},
  layers='model.layers',
  block=dict(norm1=('attn_norm',), qkv=('attn.Wqkv',), proj=('attn.Wo',), norm2=('mlp_norm',),
             fc1=('mlp.Wi',), fc2=('mlp.Wo',)),
  tied={'decoder.weight': 'model.embeddings.tok_embeddings.weight'}, activations=dict(gelu='geglu'),
  read=_modern_fields, write=_modern_settings)

FAMILIES = dict(bert=_BERT, roberta=_ROBERTA, electra=_ELECTRA, distilbert=_DISTILBERT, gpt2=_GPT2,
                modernbert=_MODERNBERT)


# --- config.json to Architecture and back ---------------------------------------------------------


def read_config(config: Mapping[str, Any], wanted: str | None) -> tuple[Family, str, Architecture]:
  """The family, the head (of `HEADS`) and the Architecture that a config.json describes.

  Args:
    wanted: a class of transformers to read it as; None is the first of its 'architectures', or
      where it has none the encoder.

  Raises:
    WeightsError: a model that we have not, or a setting that ours cannot have.
  """
  kind = config.get('model_type')
  if kind not in FAMILIES:
    raise WeightsError(f'config.json: unknown model_type {kind!r}; known: {", ".join(FAMILIES)}')
  family = FAMILIES[kind]
  head = _head(family, wanted or (config.get('architectures') or [None])[0])
  for key, value in family.required.items():
    if config.get(key, value) != value:
      raise WeightsError(f'config.json: {key} must be {value!r} for our {kind}, '
                         f'not {config[key]!r}')
  fields = {field: config[key] for field, key in family.keys.items() if key in config}
  a = family.base._replace(**fields, activation=_activation(family, config), **family.read(config))
  _check(family, head, a)
  return family, head, a


def _head(family: Family, name: str | None) -> str:
  if name is None:
    return 'encoder'
  if name not in family.heads:
    encoder = next(name for name, head in family.heads.items() if head == 'encoder')
    raise WeightsError(
      f'config.json: no head of ours is that of {name}; known: {", ".join(family.heads)}. '
      f'architecture={encoder!r} reads the encoder alone')
  return family.heads[name]


def _activation(family: Family, config: Mapping[str, Any]) -> str:
  names = {ours: name for name, ours in reversed(family.activations.items())}
  name = config.get(family.activation, names[family.base.activation])
  if name not in family.activations:
    raise WeightsError(f'config.json: {family.activation} must be one of '
                       f'{", ".join(family.activations)}, not {name!r}')
  return family.activations[name]


def _check(family: Family, head: str, a: Architecture) -> None:
  least = dict(vocabulary=1, width=1, depth=1, heads=1, hidden=1, length=1, types=0)
  for field, smallest in least.items():
    value = getattr(a, field)
    if not isinstance(value, int) or value < smallest:
      raise WeightsError(f'{family.keys.get(field, field)} must be an integer from {smallest}, '
                         f'not {value!r}')
  if a.width % a.heads or a.position == 'rotary' and a.width // a.heads % 2:
    even = ' evenly' if a.position == 'rotary' else ''
    raise WeightsError(f'{a.heads} heads do not divide the width {a.width}{even}')
  if family.exact_head and head == 'masked' and a.activation != 'gelu':
    raise WeightsError('the head of this family has an exact GELU, ours that of the blocks: '
                       f'{a.activation}')


def write_config(a: Architecture, head: nn.Module) -> tuple[str, str, dict[str, Any]]:
  """(model_type, kind of head, config.json) of a model.

  Raises:
    WeightsError: no model of transformers is this function.
  """
  reasons = []
  for model_type, family in FAMILIES.items():
    try:
      name, config = _written(family, a, head)
    except WeightsError as error:
      reasons.append(f'{model_type}: {error}')
    else:
      return model_type, family.heads[name], dict(
        architectures=[name], model_type=model_type, **config)
  raise WeightsError('\n  '.join(['no model of transformers that we know is this:', *reasons]))


def _written(family: Family, a: Architecture, head: nn.Module) -> tuple[str, dict[str, Any]]:
  """The class of transformers and its settings."""
  free = {*family.keys, *family.read({}), *_TRAINING, 'activation'}
  for field, value, expected in zip(a._fields, a, family.base):
    if field not in free and value != expected:
      raise WeightsError(f'{field} must be {expected!r}, not {value!r}')
  dtype = getattr(head, 'dtype', None)
  names = [name for name, kind in family.heads.items() if head == HEADS[kind](dtype=dtype)]
  if not names:
    raise WeightsError('no model with this head')
  activations = [name for name, ours in family.activations.items() if ours == a.activation]
  if not activations:
    known = ' or '.join(sorted({*family.activations.values()}))
    raise WeightsError(f'activation must be {known}, not {a.activation!r}')
  _check(family, family.heads[names[0]], a)
  config = {key: getattr(a, field) for field, key in family.keys.items()}
  return names[0], {**config, family.activation: activations[0], **family.write(a)}

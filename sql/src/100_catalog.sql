-- 100 · Catalog: the models that may be chosen, and what they cost from which day on.
--
-- An unknown price is NULL and makes a cost NULL; a price of 0 is free because somebody said so. A price
-- an order of magnitude away from the other prices known for the same model is kept, flagged, and
-- never used to call a model cheap.

create table if not exists routeledger.models (
  model_slug text not null,
  provider text,
  brand_slug text,
  base_model text,
  mode text,
  q_prior double precision,
  enrolled boolean not null default true,
  expected_latency_ms double precision,
  max_input_tokens bigint,
  max_output_tokens bigint,
  deprecated_at timestamptz,
  created_at timestamptz not null default routeledger.clock(),
  constraint models_pkey primary key (model_slug),
  constraint models_model_slug_check check (model_slug <> '' and length(model_slug) <= 300),
  constraint models_q_prior_check check (q_prior between 0 and 1),
  constraint models_expected_latency_ms_check check (expected_latency_ms between 0 and 10000000000)
);

create index if not exists models_base_model_idx on routeledger.models (base_model);

create table if not exists routeledger.model_prices (
  model_slug text not null,
  valid_from timestamptz not null,
  input_usd_per_mtok numeric,
  output_usd_per_mtok numeric,
  cache_read_usd_per_mtok numeric,
  cache_creation_usd_per_mtok numeric,
  flag text,
  source text,
  created_at timestamptz not null default routeledger.clock(),
  constraint model_prices_pkey primary key (model_slug, valid_from),
  constraint model_prices_model_slug_fkey foreign key (model_slug) references routeledger.models (model_slug) on delete cascade,
  constraint model_prices_not_negative_check check (
    input_usd_per_mtok >= 0 and input_usd_per_mtok <= 1000000000
    and output_usd_per_mtok >= 0 and output_usd_per_mtok <= 1000000000
    and cache_read_usd_per_mtok >= 0 and cache_read_usd_per_mtok <= 1000000000
    and cache_creation_usd_per_mtok >= 0 and cache_creation_usd_per_mtok <= 1000000000)
);

do $types$
begin
  if to_regtype('routeledger.model_input') is null then
    create type routeledger.model_input as (
      model_slug text,
      provider text,
      brand_slug text,
      base_model text,
      mode text,
      valid_from timestamptz,
      input_usd_per_mtok numeric,
      output_usd_per_mtok numeric,
      cache_read_usd_per_mtok numeric,
      cache_creation_usd_per_mtok numeric,
      max_input_tokens bigint,
      max_output_tokens bigint,
      deprecated_at timestamptz,
      q_prior double precision,
      expected_latency_ms double precision,
      enrolled boolean,
      source text
    );
  end if;
end
$types$;

-- Reads the rows of a set form: each element becomes a value of p_like's type, or a fault that says why
-- it cannot. Only the shape is judged here: p_nested names the keys whose values may be objects or arrays.
-- Raises for the call as a whole when there are no rows to read.
-- Locks: none. Errors: RL101, RL107, RL501 (for the call), never for a row.
create or replace function routeledger._read_rows(
  p_like anyelement,
  p_rows jsonb,
  p_nested text[],
  out inputs anyarray,
  out faults text[]
)
language plpgsql
stable
parallel safe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_known text[];
  v_row jsonb;
  v_fault text;
begin
  if p_rows is null then
    perform routeledger._raise_fault('RL101 rows a JSON array of objects');
  elsif jsonb_typeof(p_rows) <> 'array' then
    perform routeledger._raise_fault('RL107 rows a JSON array of objects');
  elsif jsonb_array_length(p_rows) > 10000 then
    perform routeledger._raise('RL501', jsonb_build_object('rows', jsonb_array_length(p_rows), 'limit', 10000));
  end if;
  v_known := array(select jsonb_object_keys(to_jsonb(jsonb_populate_record(p_like, '{}'))));

  -- Nearly always every row has the right shape, and one statement reads them all.
  begin
    if not exists (
      select from jsonb_array_elements(p_rows) e
      where jsonb_typeof(e) <> 'object' or e - v_known <> '{}'
        or jsonb_path_exists(e - p_nested, 'strict $.* ? (@.type() == "object" || @.type() == "array")'))
    then
      inputs := array(select jsonb_populate_record(p_like, e) from jsonb_array_elements(p_rows) e);
      faults := array_fill(null::text, array[jsonb_array_length(p_rows)]);
      return;
    end if;
  exception
    when others then
      null; -- some row does not fit its type: look at them one by one
  end;

  inputs := '{}';
  faults := '{}';
  for v_row in select e from jsonb_array_elements(p_rows) e loop
    v_fault := null;
    if jsonb_typeof(v_row) <> 'object' then
      v_fault := 'RL107 row a JSON object';
    elsif v_row - v_known <> '{}' then
      select 'RL107 ' || left(replace(k, ' ', '_'), 100) || ' no such parameter' into v_fault
      from jsonb_object_keys(v_row) k where k <> all (v_known) order by k limit 1;
    elsif jsonb_path_exists(v_row - p_nested, 'strict $.* ? (@.type() == "object" || @.type() == "array")') then
      select 'RL107 ' || r.key || ' a single value' into v_fault
      from jsonb_each(v_row - p_nested) r where jsonb_typeof(r.value) in ('object', 'array') order by r.key limit 1;
    else
      begin
        inputs := array_append(inputs, jsonb_populate_record(p_like, v_row));
      exception
        when others then
          v_fault := 'RL107 row ' || left(sqlerrm, 300);
      end;
    end if;
    if v_fault is not null then
      inputs := array_append(inputs, p_like);
    end if;
    faults := array_append(faults, v_fault);
  end loop;
end
$$;

-- Says what an attempt cost, where that number comes from, and whether it is plausible; always one row.
--
-- catalog cost = ((input - cached) * input price + cache reads * their price + cache writes * theirs
-- + output * output price) / 1e6, in USD; a cached token whose price is unknown is charged as an input token.
-- source: `caller` (given), `catalog` (computed), `unpriced` (tokens but no price: NULL, never 0), `no_usage`.
-- flag: `above_catalog` or `below_catalog` when a given cost is implausible_factor times off the computed
-- one, `flagged_price` when the computed one rests on a flagged price, `above_any_price` when nothing can
-- be computed and a token would cost more than implausible_usd_per_mtok.
-- Without a pinned path so that the planner can inline it; callers are pinned.
-- Locks: none. Errors: none.
create or replace function routeledger._usage_cost(
  p_model_slug text,
  p_at timestamptz,
  p_input_tokens bigint,
  p_output_tokens bigint,
  p_cache_read_input_tokens bigint,
  p_cache_creation_input_tokens bigint,
  p_cost_usd numeric
)
returns table (
  cost_usd numeric,
  cost_source text,
  cost_flag text
)
language sql
stable
parallel safe
security invoker
as $$
  select
    coalesce(p_cost_usd, c.computed),
    case
      when p_cost_usd is not null then 'caller'
      when c.computed is not null then 'catalog'
      when p_input_tokens is null and p_output_tokens is null then 'no_usage'
      else 'unpriced'
    end,
    case
      when p_cost_usd is null then case when c.computed is not null and c.flag is not null then 'flagged_price' end
      when c.computed is null or c.flag is not null then
        case when p_cost_usd * 1000000 > (select s.implausible_usd_per_mtok from routeledger.settings s)
            * greatest(coalesce(p_input_tokens, 0) + coalesce(p_output_tokens, 0), 1)
          then 'above_any_price' end
      when p_cost_usd > c.computed and p_cost_usd >= c.computed * (select s.implausible_factor from routeledger.settings s) then 'above_catalog'
      when p_cost_usd < c.computed and p_cost_usd * (select s.implausible_factor from routeledger.settings s) <= c.computed then 'below_catalog'
    end
  from (select) one
  left join lateral (
    select
      trim_scale((
        greatest(coalesce(p_input_tokens, 0) - coalesce(p_cache_read_input_tokens, 0) - coalesce(p_cache_creation_input_tokens, 0), 0)
          * p.input_usd_per_mtok
        + coalesce(p_cache_read_input_tokens * coalesce(p.cache_read_usd_per_mtok, p.input_usd_per_mtok), 0)
        + coalesce(p_cache_creation_input_tokens * coalesce(p.cache_creation_usd_per_mtok, p.input_usd_per_mtok), 0)
        + coalesce(p_output_tokens, 0) * p.output_usd_per_mtok
      ) / 1000000) as computed,
      p.flag
    from routeledger.model_prices p
    where p.model_slug = p_model_slug and p.valid_from <= p_at and (p_input_tokens is not null or p_output_tokens is not null)
    order by p.valid_from desc
    limit 1
  ) c on true
$$;

-- Judges every price of the given base models against its neighbours (the other prices known for the same
-- base model, whoever serves it, at any date) and sets or clears the flag. A price needs at least two
-- neighbours to be judged. Returns how many flags changed.
-- Locks: the price rows that change. Errors: none.
create or replace function routeledger._flag_prices(
  p_base_models text[]
)
returns integer
language plpgsql
volatile
parallel unsafe
security invoker
set search_path = pg_catalog, routeledger, pg_temp
as $$
declare
  v_factor numeric := (select s.implausible_factor from routeledger.settings s);
  v_changed integer;
begin
  with family as (
    select m.base_model, p.model_slug, p.valid_from, p.input_usd_per_mtok, p.output_usd_per_mtok, p.flag
    from routeledger.models m
    join routeledger.model_prices p on p.model_slug = m.model_slug
    where m.base_model = any (p_base_models)
  ),
  middle as (
    select
      f.base_model,
      count(*) filter (where f.input_usd_per_mtok > 0) as input_n,
      percentile_disc(0.5) within group (order by f.input_usd_per_mtok) filter (where f.input_usd_per_mtok > 0) as input_median,
      count(*) filter (where f.output_usd_per_mtok > 0) as output_n,
      percentile_disc(0.5) within group (order by f.output_usd_per_mtok) filter (where f.output_usd_per_mtok > 0) as output_median
    from family f
    group by f.base_model
  ),
  judged as (
    select
      f.model_slug,
      f.valid_from,
      f.flag as old_flag,
      case
        when m.input_n >= 3 and f.input_usd_per_mtok >= m.input_median * v_factor then 'input_above_neighbours'
        when m.input_n >= 3 and f.input_usd_per_mtok > 0 and f.input_usd_per_mtok * v_factor <= m.input_median then 'input_below_neighbours'
        when m.output_n >= 3 and f.output_usd_per_mtok >= m.output_median * v_factor then 'output_above_neighbours'
        when m.output_n >= 3 and f.output_usd_per_mtok > 0 and f.output_usd_per_mtok * v_factor <= m.output_median then 'output_below_neighbours'
      end as new_flag
    from family f
    join middle m on m.base_model = f.base_model
  )
  update routeledger.model_prices p
  set flag = j.new_flag
  from judged j
  where p.model_slug = j.model_slug and p.valid_from = j.valid_from and j.new_flag is distinct from j.old_flag;
  get diagnostics v_changed = row_count;
  return v_changed;
end
$$;

-- Brings models and dated prices in, each row once: a row that says what is stored already is `replayed`,
-- anything else in it replaces what was stored for that model or that (model, valid_from). A field that is
-- absent or null leaves what is known about the model as it is, and so does a row that is dated before
-- another price of that model. Of two rows for one (model, valid_from) in a call the later one wins. One
-- bad row never fails its neighbours.
-- valid_from defaults to the epoch: in force always; a row without date and prices says something of the model only. base_model defaults to the slug's last path segment.
-- Locks: one writer at a time (share row exclusive on models), rows by slug. Errors: RL101, RL107, RL501; per row RL101, RL103, RL107, RL108, RL109.
create or replace function routeledger.import_models(
  p_rows jsonb
)
returns table (
  ord integer,
  status text,
  code text,
  message text,
  detail jsonb,
  hint text,
  model_slug text,
  valid_from timestamptz,
  flag text
)
language plpgsql
volatile
parallel unsafe
security definer
set search_path = pg_catalog, routeledger, pg_temp
as $$
#variable_conflict use_column
declare
  v_inputs routeledger.model_input[];
  v_faults text[];
  v_row routeledger.model_input;
  v_changed boolean[] := array[]::boolean[];
  v_touched text[] := array[]::text[];
  v_priced boolean;
begin
  select r.inputs, r.faults into v_inputs, v_faults from routeledger._read_rows(null::routeledger.model_input, p_rows, array[]::text[]) r;
  lock table routeledger.models in share row exclusive mode;

  for i in 1 .. coalesce(array_length(v_inputs, 1), 0) loop
    v_row := v_inputs[i];
    v_changed[i] := false;
    v_faults[i] := coalesce(v_faults[i], case
      when coalesce(v_row.model_slug, '') = '' then 'RL101 model_slug'
      when length(v_row.model_slug) > 300 then 'RL108 model_slug 300 characters'
      when greatest(length(v_row.provider), length(v_row.brand_slug), length(v_row.base_model), length(v_row.mode), length(v_row.source)) > 300
        then 'RL108 provider,brand_slug,base_model,mode,source 300 characters'
      when not isfinite(v_row.valid_from) or v_row.valid_from > routeledger.clock() + interval '10 years' then 'RL109 valid_from'
      when not isfinite(v_row.deprecated_at) then 'RL109 deprecated_at'
      when v_row.input_usd_per_mtok not between 0 and 1000000000 then 'RL103 input_usd_per_mtok 0 to 1e9'
      when v_row.output_usd_per_mtok not between 0 and 1000000000 then 'RL103 output_usd_per_mtok 0 to 1e9'
      when v_row.cache_read_usd_per_mtok not between 0 and 1000000000 then 'RL103 cache_read_usd_per_mtok 0 to 1e9'
      when v_row.cache_creation_usd_per_mtok not between 0 and 1000000000 then 'RL103 cache_creation_usd_per_mtok 0 to 1e9'
      when v_row.q_prior not between 0 and 1 then 'RL103 q_prior 0 to 1'
      when v_row.expected_latency_ms not between 0 and 10000000000 then 'RL103 expected_latency_ms 0 to 1e10'
      when v_row.max_input_tokens < 0 then 'RL103 max_input_tokens 0 or more'
      when v_row.max_output_tokens < 0 then 'RL103 max_output_tokens 0 or more'
    end);
    continue when v_faults[i] is not null;

    -- Without a date and without any price a row says something of the model only.
    v_priced := v_row.valid_from is not null
      or coalesce(v_row.input_usd_per_mtok, v_row.output_usd_per_mtok, v_row.cache_read_usd_per_mtok, v_row.cache_creation_usd_per_mtok) is not null;
    if v_priced then
      v_row.valid_from := coalesce(v_row.valid_from, timestamptz 'epoch');
    end if;
    v_inputs[i] := v_row;
    v_touched := v_touched || array(select m.base_model from routeledger.models m where m.model_slug = v_row.model_slug);

    insert into routeledger.models as m (
      model_slug, provider, brand_slug, base_model, mode, q_prior, enrolled, expected_latency_ms, max_input_tokens, max_output_tokens, deprecated_at)
    values (
      v_row.model_slug, v_row.provider, v_row.brand_slug, coalesce(v_row.base_model, regexp_replace(v_row.model_slug, '^.*/', '')), v_row.mode,
      v_row.q_prior, coalesce(v_row.enrolled, true), v_row.expected_latency_ms, v_row.max_input_tokens, v_row.max_output_tokens, v_row.deprecated_at)
    on conflict (model_slug) do update set
      provider = coalesce(excluded.provider, m.provider),
      brand_slug = coalesce(excluded.brand_slug, m.brand_slug),
      base_model = coalesce(v_row.base_model, m.base_model),
      mode = coalesce(excluded.mode, m.mode),
      q_prior = coalesce(excluded.q_prior, m.q_prior),
      enrolled = coalesce(v_row.enrolled, m.enrolled),
      expected_latency_ms = coalesce(excluded.expected_latency_ms, m.expected_latency_ms),
      max_input_tokens = coalesce(excluded.max_input_tokens, m.max_input_tokens),
      max_output_tokens = coalesce(excluded.max_output_tokens, m.max_output_tokens),
      deprecated_at = coalesce(excluded.deprecated_at, m.deprecated_at)
    where (coalesce(excluded.provider, m.provider), coalesce(excluded.brand_slug, m.brand_slug), coalesce(v_row.base_model, m.base_model),
           coalesce(excluded.mode, m.mode), coalesce(excluded.q_prior, m.q_prior), coalesce(v_row.enrolled, m.enrolled),
           coalesce(excluded.expected_latency_ms, m.expected_latency_ms), coalesce(excluded.max_input_tokens, m.max_input_tokens),
           coalesce(excluded.max_output_tokens, m.max_output_tokens), coalesce(excluded.deprecated_at, m.deprecated_at))
      is distinct from (m.provider, m.brand_slug, m.base_model, m.mode, m.q_prior, m.enrolled,
           m.expected_latency_ms, m.max_input_tokens, m.max_output_tokens, m.deprecated_at)
      and not exists (
        select from routeledger.model_prices q where q.model_slug = v_row.model_slug and q.valid_from > v_row.valid_from);
    v_changed[i] := found;
    v_touched := v_touched || array(select m.base_model from routeledger.models m where m.model_slug = v_row.model_slug);
    continue when not v_priced;

    insert into routeledger.model_prices as p (
      model_slug, valid_from, input_usd_per_mtok, output_usd_per_mtok, cache_read_usd_per_mtok, cache_creation_usd_per_mtok, source)
    values (
      v_row.model_slug, v_row.valid_from, v_row.input_usd_per_mtok, v_row.output_usd_per_mtok,
      v_row.cache_read_usd_per_mtok, v_row.cache_creation_usd_per_mtok, v_row.source)
    on conflict (model_slug, valid_from) do update set
      input_usd_per_mtok = excluded.input_usd_per_mtok,
      output_usd_per_mtok = excluded.output_usd_per_mtok,
      cache_read_usd_per_mtok = excluded.cache_read_usd_per_mtok,
      cache_creation_usd_per_mtok = excluded.cache_creation_usd_per_mtok,
      source = excluded.source
    where (p.input_usd_per_mtok, p.output_usd_per_mtok, p.cache_read_usd_per_mtok, p.cache_creation_usd_per_mtok, p.source)
      is distinct from (excluded.input_usd_per_mtok, excluded.output_usd_per_mtok, excluded.cache_read_usd_per_mtok, excluded.cache_creation_usd_per_mtok, excluded.source);
    v_changed[i] := v_changed[i] or found;
  end loop;

  perform routeledger._flag_prices(v_touched);

  return query
  select
    o.n::integer,
    case when o.fault is not null then 'refused' when v_changed[o.n] then 'accepted' else 'replayed' end,
    e.code,
    e.message,
    routeledger._fault_detail(o.fault),
    e.hint,
    v_inputs[o.n].model_slug,
    v_inputs[o.n].valid_from,
    p.flag
  from unnest(v_faults) with ordinality o (fault, n)
  left join routeledger._errors() e on e.code = split_part(o.fault, ' ', 1)
  left join routeledger.model_prices p on p.model_slug = v_inputs[o.n].model_slug and p.valid_from = v_inputs[o.n].valid_from and o.fault is null
  order by o.n;
end
$$;

-- The catalogue of schema routeledger as text: one row a fact, sorted. One plain SELECT, for psql and drivers.
--
-- Two databases with the same rows hold the same routines, tables, columns, constraints, indexes, views, types,
-- grants and comments. What differs by date or by server is left out: partitions and all that is on them, the
-- owner's name (written `owner`), members of the four roles that are not ours, details that only some majors
-- keep. What is data is left out, and so are the tables that hold the row images of repairs. While it runs,
-- search_path is pg_catalog (and stays so until the end of the transaction), because names are printed in full only
-- then.
with
ns as materialized (
  select n.oid, n.nspname, n.nspowner, n.nspacl
  from (select pg_catalog.set_config('search_path', 'pg_catalog', true) as pinned) s
  cross join pg_catalog.pg_namespace n
  where n.nspname = 'routeledger' and s.pinned is not null
),
rel as materialized (
  select
    c.oid,
    c.relname,
    c.relkind,
    c.relowner,
    c.relacl,
    c.relpersistence,
    c.relrowsecurity,
    c.relforcerowsecurity,
    c.reloptions,
    c.reltype,
    pg_catalog.format('%I.%I', ns.nspname, c.relname) as name
  from pg_catalog.pg_class c
  join ns on ns.oid = c.relnamespace
  where not c.relispartition and c.relkind <> 't' and c.relname !~ '^repair_rows_[0-9]+_[0-9]+$'
),
fn as materialized (
  select
    p.oid,
    p.proowner,
    p.proacl,
    pg_catalog.format('%I.%I(%s)', ns.nspname, p.proname, pg_catalog.pg_get_function_identity_arguments(p.oid))
      as name
  from pg_catalog.pg_proc p
  join ns on ns.oid = p.pronamespace
),
typ as materialized (
  select
    t.oid,
    t.typowner,
    t.typacl,
    t.typtype,
    t.typbasetype,
    t.typtypmod,
    t.typnotnull,
    t.typdefault,
    pg_catalog.format('%I.%I', ns.nspname, t.typname) as name
  from pg_catalog.pg_type t
  join ns on ns.oid = t.typnamespace
  where t.typtype in ('e', 'd', 'r', 'm')
    or (t.typtype = 'c' and exists (select from rel where rel.oid = t.typrelid and rel.relkind = 'c'))
),
-- every object that can have an owner and grants: what it is, its name, owner, grants in force
owned as (
  select 'schema' as kind, pg_catalog.quote_ident(ns.nspname) as name, ns.nspowner as owner,
    coalesce(ns.nspacl, pg_catalog.acldefault('n', ns.nspowner)) as acl
  from ns
  union all
  select 'function', fn.name, fn.proowner, coalesce(fn.proacl, pg_catalog.acldefault('f', fn.proowner))
  from fn
  union all
  select 'relation', rel.name, rel.relowner,
    coalesce(
      rel.relacl,
      pg_catalog.acldefault(case when rel.relkind = 'S' then 's'::"char" else 'r'::"char" end, rel.relowner))
  from rel
  where rel.relkind in ('r', 'p', 'v', 'm', 'S', 'f')
  union all
  select 'type', typ.name, typ.typowner, coalesce(typ.typacl, pg_catalog.acldefault('T', typ.typowner))
  from typ
  union all
  select 'column', pg_catalog.format('%s.%I', rel.name, a.attname), rel.relowner, a.attacl
  from rel
  join pg_catalog.pg_attribute a on a.attrelid = rel.oid
  where a.attacl is not null and a.attnum > 0 and not a.attisdropped
),
facts as (
  select pg_catalog.format('schema %I', ns.nspname) as fact
  from ns

  union all
  select pg_catalog.format('owner of %s %s is %s', o.kind, o.name, o.owner::pg_catalog.regrole)
  from owned o
  cross join ns
  where o.owner <> ns.nspowner

  union all
  select pg_catalog.format(
    'grant %s%s on %s %s to %s',
    a.privilege_type,
    case when a.is_grantable then ' (grantable)' else '' end,
    o.kind,
    o.name,
    case
      when a.grantee = 0 then 'public'
      when a.grantee = o.owner then 'owner'
      else a.grantee::pg_catalog.regrole::text
    end)
  from owned o
  cross join lateral pg_catalog.aclexplode(o.acl) a
  where not (a.grantee = o.owner and a.privilege_type = 'MAINTAIN') -- 17 and later

  union all
  select pg_catalog.format(
    'default grant %s on %s to %s',
    a.privilege_type,
    d.defaclobjtype,
    case
      when a.grantee = 0 then 'public'
      when a.grantee = d.defaclrole then 'owner'
      else a.grantee::pg_catalog.regrole::text
    end)
  from pg_catalog.pg_default_acl d
  join ns on ns.oid = d.defaclnamespace
  cross join lateral pg_catalog.aclexplode(d.defaclacl) a

  union all
  select pg_catalog.format(
    'function %s args=(%s) returns=(%s) language=%s kind=%s volatility=%s parallel=%s security=%s strict=%s'
    || ' leakproof=%s cost=%s rows=%s config=%s body=%s',
    fn.name,
    pg_catalog.pg_get_function_arguments(p.oid),
    pg_catalog.pg_get_function_result(p.oid),
    l.lanname,
    p.prokind,
    p.provolatile,
    p.proparallel,
    case when p.prosecdef then 'definer' else 'invoker' end,
    p.proisstrict,
    p.proleakproof,
    p.procost,
    p.prorows,
    p.proconfig,
    pg_catalog.md5(coalesce(pg_catalog.pg_get_function_sqlbody(p.oid), p.prosrc)))
  from fn
  join pg_catalog.pg_proc p on p.oid = fn.oid
  join pg_catalog.pg_language l on l.oid = p.prolang

  union all
  select pg_catalog.format(
    'relation %s kind=%s persistence=%s partition by=%s row security=%s/%s options=%s',
    rel.name,
    rel.relkind,
    rel.relpersistence,
    case when rel.relkind = 'p' then pg_catalog.pg_get_partkeydef(rel.oid) end,
    rel.relrowsecurity,
    rel.relforcerowsecurity,
    (select pg_catalog.array_agg(o.option order by o.option collate "C") from unnest(rel.reloptions) o (option)))
  from rel
  where rel.relkind not in ('i', 'I', 'c')

  union all
  -- majors deparse parentheses and qualifications differently
  select pg_catalog.format(
    'view %s body=%s',
    rel.name,
    pg_catalog.md5(
      pg_catalog.regexp_replace(pg_catalog.pg_get_viewdef(rel.oid), '[[:space:]()]|\m[a-z_0-9]+\.', '', 'g')))
  from rel
  where rel.relkind in ('v', 'm')

  union all
  select pg_catalog.format(
    'column %s.%I #%s type=%s collation=%s not null=%s default=%s identity=%s generated=%s storage=%s'
    || ' compression=%s statistics=%s',
    rel.name,
    a.attname,
    pg_catalog.row_number() over (partition by a.attrelid order by a.attnum),
    pg_catalog.format_type(a.atttypid, a.atttypmod),
    case when a.attcollation <> t.typcollation then a.attcollation::pg_catalog.regcollation end,
    a.attnotnull,
    pg_catalog.pg_get_expr(d.adbin, d.adrelid),
    a.attidentity,
    a.attgenerated,
    a.attstorage,
    a.attcompression,
    coalesce(nullif(a.attstattarget, -1)::text, ''))
  from rel
  join pg_catalog.pg_attribute a on a.attrelid = rel.oid
  join pg_catalog.pg_type t on t.oid = a.atttypid
  left join pg_catalog.pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
  where a.attnum > 0 and not a.attisdropped and rel.relkind in ('r', 'p', 'v', 'm', 'c', 'f')

  union all
  select pg_catalog.format(
    'sequence %s type=%s start=%s increment=%s min=%s max=%s cache=%s cycle=%s',
    rel.name,
    s.seqtypid::pg_catalog.regtype,
    s.seqstart,
    s.seqincrement,
    s.seqmin,
    s.seqmax,
    s.seqcache,
    s.seqcycle)
  from rel
  join pg_catalog.pg_sequence s on s.seqrelid = rel.oid

  union all
  -- contype n: columns say it, and only 18 and later list it; conparentid: the rows of partitions. A CHECK is
  -- written without parentheses, because those of BETWEEN are others after a dump and restore.
  select pg_catalog.format(
    'constraint %I on %s %s validated=%s',
    k.conname,
    coalesce(rel.name, typ.name),
    case
      when k.contype = 'c'
      then pg_catalog.btrim(
        pg_catalog.regexp_replace(pg_catalog.pg_get_constraintdef(k.oid), '[()[:space:]]+', ' ', 'g'))
      else pg_catalog.pg_get_constraintdef(k.oid)
    end,
    k.convalidated)
  from pg_catalog.pg_constraint k
  left join rel on rel.oid = k.conrelid
  left join typ on typ.oid = k.contypid
  where k.contype <> 'n' and k.conparentid = 0 and (rel.oid is not null or typ.oid is not null)

  union all
  select pg_catalog.format(
    'index %s valid=%s replica identity=%s',
    pg_catalog.pg_get_indexdef(i.indexrelid),
    i.indisvalid,
    i.indisreplident)
  from pg_catalog.pg_index i
  join rel on rel.oid = i.indexrelid

  union all
  select pg_catalog.format('trigger %s enabled=%s', pg_catalog.pg_get_triggerdef(t.oid), t.tgenabled)
  from pg_catalog.pg_trigger t
  join rel on rel.oid = t.tgrelid
  where not t.tgisinternal

  union all
  select pg_catalog.format('rule %s', pg_catalog.pg_get_ruledef(r.oid))
  from pg_catalog.pg_rewrite r
  join rel on rel.oid = r.ev_class
  where r.rulename <> '_RETURN'

  union all
  select pg_catalog.format(
    'policy %I on %s command=%s permissive=%s roles=%s using=%s check=%s',
    y.polname,
    rel.name,
    y.polcmd,
    y.polpermissive,
    (select pg_catalog.array_agg(m.r::pg_catalog.regrole::text order by 1) from unnest(y.polroles) m (r)),
    pg_catalog.pg_get_expr(y.polqual, y.polrelid),
    pg_catalog.pg_get_expr(y.polwithcheck, y.polrelid))
  from pg_catalog.pg_policy y
  join rel on rel.oid = y.polrelid

  union all
  select pg_catalog.format('statistics %s', pg_catalog.pg_get_statisticsobjdef(x.oid))
  from pg_catalog.pg_statistic_ext x
  join rel on rel.oid = x.stxrelid

  union all
  select pg_catalog.format(
    'type %s kind=%s base=%s not null=%s default=%s labels=%s',
    typ.name,
    typ.typtype,
    case when typ.typbasetype <> 0 then pg_catalog.format_type(typ.typbasetype, typ.typtypmod) end,
    typ.typnotnull,
    typ.typdefault,
    (
      select pg_catalog.array_agg(e.enumlabel::text order by e.enumsortorder)
      from pg_catalog.pg_enum e
      where e.enumtypid = typ.oid
    ))
  from typ

  union all
  select pg_catalog.format('comment on %s is %L', c.object, c.comment)
  from (
    select 'schema ' || pg_catalog.quote_ident(ns.nspname), pg_catalog.obj_description(ns.oid, 'pg_namespace')
    from ns
    union all
    select 'function ' || fn.name, pg_catalog.obj_description(fn.oid, 'pg_proc')
    from fn
    union all
    select 'relation ' || rel.name, pg_catalog.obj_description(rel.oid, 'pg_class')
    from rel
    union all
    select 'type ' || typ.name, pg_catalog.obj_description(typ.oid, 'pg_type')
    from typ
    union all
    select pg_catalog.format('column %s.%I', rel.name, a.attname), pg_catalog.col_description(rel.oid, a.attnum)
    from rel
    join pg_catalog.pg_attribute a on a.attrelid = rel.oid
    where a.attnum > 0 and not a.attisdropped and rel.relkind in ('r', 'p', 'v', 'm', 'c', 'f')
    union all
    select pg_catalog.format('constraint %I on %s', k.conname, rel.name),
      pg_catalog.obj_description(k.oid, 'pg_constraint')
    from rel
    join pg_catalog.pg_constraint k on k.conrelid = rel.oid
    where k.conparentid = 0
    union all
    select pg_catalog.format('trigger %I on %s', t.tgname, rel.name), pg_catalog.obj_description(t.oid, 'pg_trigger')
    from rel
    join pg_catalog.pg_trigger t on t.tgrelid = rel.oid
  ) c (object, comment)
  where c.comment is not null

  union all
  select pg_catalog.format(
    'role %I login=%s superuser=%s createdb=%s createrole=%s replication=%s bypassrls=%s inherit=%s',
    r.rolname,
    r.rolcanlogin,
    r.rolsuper,
    r.rolcreatedb,
    r.rolcreaterole,
    r.rolreplication,
    r.rolbypassrls,
    r.rolinherit)
  from pg_catalog.pg_roles r
  cross join ns
  where r.rolname in ('routeledger_reader', 'routeledger_writer', 'routeledger_judge', 'routeledger_admin')

  union all
  select pg_catalog.format('member %I of %I admin=%s', u.rolname, g.rolname, pg_catalog.bool_or(m.admin_option))
  from pg_catalog.pg_auth_members m
  join pg_catalog.pg_roles u on u.oid = m.member
  join pg_catalog.pg_roles g on g.oid = m.roleid
  cross join ns
  where u.rolname in ('routeledger_reader', 'routeledger_writer', 'routeledger_judge', 'routeledger_admin')
    or (
      g.rolname in ('routeledger_reader', 'routeledger_writer', 'routeledger_judge', 'routeledger_admin')
      and u.rolname like 'routeledger\_%'
    )
  group by u.rolname, g.rolname
)
select f.fact
from facts f
order by f.fact collate "C"

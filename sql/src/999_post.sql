-- 999 · Last: the log, the first partitions, and the end of the transaction.

insert into routeledger.install_log (action, to_version)
select 'install', routeledger.version()
where not exists (select from routeledger.install_log);

do $post$
begin
  perform routeledger.maintain();
end
$post$;

commit;

-- The views of the same names come back. A store of an earlier release may not know them.
DO $$
BEGIN
    IF current_setting('timescaledb.license', true) IS DISTINCT FROM 'apache' THEN
        DROP MATERIALIZED VIEW IF EXISTS bars_1d;
        DROP MATERIALIZED VIEW IF EXISTS bars_1h;
        DROP MATERIALIZED VIEW IF EXISTS bars_5m;
        DROP MATERIALIZED VIEW IF EXISTS bars_1m;
    END IF;
    IF to_regprocedure('mdp_make_rollup_views()') IS NOT NULL THEN
        PERFORM mdp_make_rollup_views();
    END IF;
END $$;

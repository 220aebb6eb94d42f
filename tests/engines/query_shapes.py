"""SQL statements of every kind that may call `ai_query`, as data.

They read the tables `t(i, g, w, u)` (as many rows as the test likes; `w` repeats eight times, `u` is distinct) and
`s(i, v)` (40 rows), the files `$folder/t.parquet` and `$folder/t.csv`, and the frames `pandas_t`, `polars_t` and
`arrow_t`. The endpoints: `ep` and `sum` answer with the prompt, `cls` with one of three labels, `num` with a number,
`bad` fails for some prompts, `emb` embeds.
"""

from __future__ import annotations

from dataclasses import dataclass

#: A condition that a third of the words pass.
YES = "ai_query('cls', w) = 'a'"


@dataclass(frozen=True, slots=True)
class Shape:
    """One statement.

    `setup` comes before it, `then` reads what it has changed. `ordered`: its rows have an order. `limited`: a LIMIT
    stands above an ai condition, so that looking ahead may ask a little more. `fickle`: its requests or rows are
    drawn at random, so that only their number can be compared.
    """

    name: str
    sql: str
    setup: str = ""
    then: str = ""
    ordered: bool = False
    limited: bool = False
    fickle: bool = False

    def __str__(self) -> str:
        return self.name


SELECTS = (
    Shape("column", "SELECT i, ai_query('ep', w) AS r FROM t", ordered=True),
    Shape("distinct prompts", "SELECT i, ai_query('ep', u) AS r FROM t", ordered=True),
    Shape("from first", "FROM t SELECT ai_query('ep', w) WHERE i % 2 = 0", ordered=True),
    Shape("filtered column", "SELECT ai_query('ep', w) FROM t WHERE g = 3"),
    Shape("nothing passes", "SELECT ai_query('ep', w) FROM t WHERE i < 0"),
    Shape("some prompts are NULL", "SELECT ai_query('ep', CASE WHEN g > 4 THEN w END) FROM t", ordered=True),
    Shape("constant prompt", "SELECT i, ai_query('ep', 'constant') FROM t", ordered=True),
    Shape("one row without a table", "SELECT ai_query('ep', 'constant') AS r"),
    Shape("same call twice", "SELECT ai_query('ep', w), upper(ai_query('ep', w)) FROM t", ordered=True),
    Shape("several endpoints", "SELECT ai_query('ep', w), ai_query('cls', w), ai_query('num', u) FROM t", ordered=True),
    Shape("return type", "SELECT ai_query('num', w, returnType => 'INT') + i FROM t", ordered=True),
    Shape("parameters of the model", "SELECT ai_query('ep', w, modelParameters => {'max_tokens': 5}) FROM t"),
    Shape("struct packed", "SELECT struct_pack(i := i, r := ai_query('ep', w)) FROM t", ordered=True),
    Shape("list packed", "SELECT [ai_query('ep', w), ai_query('sum', w)] FROM t", ordered=True),
    Shape("field of a derived table", "SELECT r FROM (SELECT i, ai_query('ep', w) AS r FROM t) x WHERE x.i < 300"),
    Shape("embeddings", "SELECT i, ai_query('emb', w) AS e FROM t", ordered=True),
    Shape("dimensions of embeddings", "SELECT list_sum(ai_query('emb', w)) FROM t WHERE g < 5"),
    Shape("alias used again", "SELECT ai_query('cls', w) AS r, r || '!' FROM t", ordered=True),
    Shape("columns expression", "SELECT i, ai_query('ep', COLUMNS('w|u')) FROM t", ordered=True),
    Shape("TRY", "SELECT TRY(ai_query('ep', w)) FROM t WHERE i < 30"),
    Shape("failures as rows", "SELECT (ai_query('bad', w, failOnError => false)).errorMessage FROM t", ordered=True),
    Shape("failures and results", "SELECT i, ai_query('bad', w, failOnError => false) AS r FROM t", ordered=True),
    Shape("error column", "SELECT ai_error('bad', w).class FROM t", ordered=True),
    Shape("served entity", "SELECT ai_served_entity('ep', w), ai_query('ep', w) FROM t", ordered=True),
)

CONDITIONS = (
    Shape("where", f"SELECT i FROM t WHERE {YES}", ordered=True),
    Shape("where with a cheap condition", f"SELECT i FROM t WHERE {YES} AND g = 7"),
    Shape("cheap condition first", f"SELECT i FROM t WHERE g = 7 AND {YES}"),
    Shape("two ai conditions", f"SELECT i FROM t WHERE {YES} AND ai_query('num', u) > '5'"),
    Shape("either of two ai conditions", f"SELECT i FROM t WHERE {YES} OR ai_query('num', u) > '5'"),
    Shape("not", f"SELECT i FROM t WHERE NOT ({YES})"),
    Shape("answer of what passed", f"SELECT ai_query('ep', w) FROM t WHERE {YES} AND g < 5"),
    Shape("condition on the selected answer", "SELECT ai_query('cls', w) AS r FROM t WHERE r <> 'b'"),
    Shape("filtered failures", "SELECT i FROM t WHERE (ai_query('bad', w, failOnError => false)).errorMessage IS NULL"),
    Shape("coalesce", "SELECT coalesce(nullif(g, 3)::VARCHAR, ai_query('ep', w)) FROM t", ordered=True),
    Shape("coalesce of answers", "SELECT coalesce(nullif(ai_query('cls', w), 'a'), ai_query('ep', u)) FROM t"),
    Shape("case", "SELECT i, CASE WHEN g = 1 THEN ai_query('ep', w) ELSE 'no' END FROM t", ordered=True),
    Shape("case on an answer", f"SELECT CASE WHEN {YES} THEN ai_query('ep', u) ELSE ai_query('sum', u) END FROM t"),
    Shape("if", "SELECT if(g > 7, ai_query('ep', w), w) FROM t", ordered=True),
    Shape("short circuit", "SELECT i FROM t WHERE g < 3 OR ai_query('cls', w) = 'b'"),
    Shape("in a list of answers", "SELECT i FROM t WHERE 'a' IN (ai_query('cls', w), ai_query('cls', u))"),
    Shape("between", "SELECT i FROM t WHERE ai_query('num', w, returnType => 'INT') BETWEEN 2 AND 6"),
    Shape("pushed into a derived table", "SELECT * FROM (SELECT i, g, ai_query('ep', w) r FROM t) WHERE g = 2"),
)

JOINS = (
    Shape("inner join", "SELECT t.i, ai_query('ep', t.w || s.v) FROM t JOIN s ON t.i = s.i"),
    Shape("join on an answer", "SELECT t.i, s.v FROM t JOIN s ON ai_query('ep', t.w) = 'R:w' || s.i"),
    Shape("join with an ai condition", f"SELECT t.i FROM t JOIN s ON t.i = s.i AND {YES}"),
    Shape("ai condition between both", "SELECT t.i FROM t JOIN s ON t.g = s.i % 10 AND ai_query('cls', w || v) = 'a'"),
    Shape("left join", "SELECT t.i, ai_query('ep', s.v) FROM t LEFT JOIN s ON t.i = s.i"),
    Shape("right join", "SELECT s.i, ai_query('ep', t.w) FROM t RIGHT JOIN s ON t.i = s.i"),
    Shape("full join", "SELECT s.i, ai_query('ep', coalesce(t.w, s.v)) FROM t FULL JOIN s ON t.i = s.i"),
    Shape("semi join", "SELECT i, ai_query('ep', w) FROM t SEMI JOIN s USING (i)"),
    Shape("anti join", f"SELECT i FROM t ANTI JOIN (SELECT i FROM t WHERE {YES}) x USING (i)"),
    Shape("cross join", "SELECT ai_query('ep', t.w || s.v) FROM (FROM t WHERE g = 0 AND i < 500) t, s WHERE s.i < 200"),
    Shape("asof join", "SELECT t.i, ai_query('ep', s.v) FROM t ASOF JOIN s ON t.i >= s.i"),
    Shape("positional join", "SELECT ai_query('ep', s.v) FROM s POSITIONAL JOIN (SELECT 1 AS one) x"),
    Shape("lateral join", "SELECT t.i, x.r FROM t, LATERAL (SELECT ai_query('ep', t.w) AS r) x"),
    Shape("self join of answers", "WITH a AS (SELECT i, ai_query('cls', w) r FROM t WHERE i < 200) "
          "SELECT x.i, y.i FROM a x JOIN a y ON x.r = y.r AND x.i + 1 = y.i"),
    Shape("asked after the join", "SELECT ai_query('sum', r) FROM (SELECT ai_query('ep', w) r, i FROM t) x JOIN s USING (i)"),
)  # fmt: skip

SUBQUERIES = (
    Shape("cte", "WITH a AS (SELECT i, ai_query('ep', w) AS r FROM t) SELECT i, r FROM a WHERE i % 3 = 0"),
    Shape("cte used twice", "WITH a AS (SELECT g, ai_query('ep', w) r FROM t) SELECT max(r) FROM a UNION ALL SELECT min(r) FROM a"),
    Shape("materialized cte", "WITH a AS MATERIALIZED (SELECT i, ai_query('ep', w) AS r FROM t) SELECT r FROM a WHERE i < 900"),
    Shape("cte of a cte", "WITH a AS (SELECT i, g, ai_query('ep', w) r FROM t WHERE i < 1500), "
          "b AS (SELECT g, max(r) AS m FROM a GROUP BY g) SELECT g, ai_query('sum', m) FROM b"),
    Shape("recursive cte", "WITH RECURSIVE n(i, r) AS (SELECT 0, 'start' UNION ALL SELECT i + 1, ai_query('ep', r) FROM n "
          "WHERE i < 5) SELECT * FROM n"),
    Shape("after a recursive cte", "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 90) "
          "SELECT ai_query('ep', 'n' || i) FROM n"),
    Shape("scalar subquery", "SELECT i, (SELECT max(ai_query('num', v)) FROM s) FROM t WHERE i < 60"),
    Shape("scalar subquery in a prompt", "SELECT ai_query('ep', w || (SELECT max(ai_query('num', v)) FROM s)) FROM t"),
    Shape("correlated subquery", "SELECT i, (SELECT ai_query('ep', s.v) FROM s WHERE s.i = t.i) FROM t WHERE i < 500"),
    Shape("exists", "SELECT i FROM t WHERE EXISTS (SELECT 1 FROM s WHERE s.i = t.i AND ai_query('cls', s.v) = 'a')"),
    Shape("not exists", "SELECT i FROM t WHERE NOT EXISTS (SELECT 1 FROM s WHERE s.i = t.i AND ai_query('cls', t.w) = 'a')"),
    Shape("in a subquery", "SELECT i FROM t WHERE i IN (SELECT i FROM s WHERE ai_query('cls', v) = 'b')"),
    Shape("not in a subquery", "SELECT i FROM t WHERE g NOT IN (SELECT i % 10 FROM s WHERE ai_query('cls', v) = 'b')"),
    Shape("answer in a subquery", "SELECT i FROM t WHERE ai_query('cls', w) IN (SELECT chr(97 + (i % 2)::INT) FROM s)"),
    Shape("any of a subquery", "SELECT i FROM t WHERE ai_query('cls', w) = ANY (SELECT ai_query('cls', v) FROM s WHERE i < 100)"),
    Shape("values", "SELECT ai_query('ep', w) FROM (VALUES ('a'), ('b'), (NULL), ('a')) x(w)"),
    Shape("range", "SELECT ai_query('ep', 'r' || i // 8) FROM range(2500) r(i)", ordered=True),
    Shape("generate_series", "SELECT ai_query('ep', 'r' || i // 8) FROM generate_series(1, 2500) r(i)", ordered=True),
    Shape("unnest", "SELECT ai_query('ep', unnest([w, u])) FROM t WHERE g = 1"),
    Shape("unnest in from", "SELECT ai_query('ep', x) FROM t, unnest([w, w || '?']) n(x) WHERE g = 1"),
    Shape("unnested answers", "SELECT unnest(string_split(ai_query('ep', w), ':')) FROM t"),
    Shape("lambda", "SELECT list_transform([w, w || '?'], lambda e: ai_query('ep', e)) FROM t WHERE g = 1"),
    Shape("lambda that filters", "SELECT list_filter([w, u], lambda e: ai_query('cls', e) = 'a') FROM t WHERE g = 1"),
    Shape("lambda that folds", "SELECT list_reduce(['a', 'b', 'c'], lambda x, y: ai_query('ep', x || y)) FROM s"),
    Shape("comprehension", "SELECT [ai_query('ep', e) for e in [w, u]] FROM t WHERE g = 1"),
)  # fmt: skip

NESTED = (
    Shape("two deep", "SELECT ai_query('sum', ai_query('ep', w)) FROM t", ordered=True),
    Shape("three deep", "SELECT ai_query('cls', ai_query('sum', ai_query('ep', w))) FROM t WHERE g < 5"),
    Shape("four deep", "SELECT ai_query('num', ai_query('cls', ai_query('sum', ai_query('ep', w)))) FROM t WHERE g < 5"),
    Shape("two deep in a condition", "SELECT i FROM t WHERE ai_query('cls', ai_query('ep', w)) = 'a'"),
    Shape("same endpoint twice", "SELECT ai_query('ep', 'again ' || ai_query('ep', w)) FROM t"),
    Shape("one answer in two prompts", "SELECT ai_query('sum', r || '1'), ai_query('sum', r || '2') FROM "
          "(SELECT ai_query('ep', w) AS r FROM t)"),
    Shape("two answers in one prompt", "SELECT ai_query('sum', ai_query('ep', w) || ai_query('cls', u)) FROM t"),
    Shape("embedding of an answer", "SELECT ai_query('emb', ai_query('ep', w)) FROM t"),
    Shape("nested under a condition", f"SELECT ai_query('sum', ai_query('ep', w)) FROM t WHERE {YES}"),
    Shape("few answers", "SELECT i, ai_query('sum', ai_query('cls', w)) FROM t", ordered=True),
)  # fmt: skip

GROUPS = (
    Shape("aggregate", "SELECT max(ai_query('ep', w)), count(*) FROM t"),
    Shape("aggregates by group", "SELECT g, min(ai_query('ep', w)), sum(ai_query('num', w, returnType => 'INT')) FROM t GROUP BY g"),
    Shape("filter", "SELECT g, count(*) FILTER (ai_query('cls', w) = 'a') FROM t GROUP BY g"),
    Shape("having", "SELECT ai_query('cls', w) AS z, count(*) FROM t GROUP BY z HAVING count(*) > 1"),
    Shape("having asks", "SELECT g FROM t GROUP BY g HAVING ai_query('cls', min(w)) = 'a'"),
    Shape("group by an answer", "SELECT ai_query('cls', w) AS z, count(*) FROM t GROUP BY 1"),
    Shape("group by all", "SELECT ai_query('cls', w) AS z, g, count(*) FROM t GROUP BY ALL"),
    Shape("rollup", "SELECT ai_query('cls', w) AS z, g, count(*) FROM t GROUP BY ROLLUP (z, g)"),
    Shape("asked of groups", "SELECT g, ai_query('sum', string_agg(w, ',' ORDER BY i)) FROM t WHERE i < 1000 GROUP BY g"),
    Shape("asked of grouped answers", "SELECT ai_query('sum', max(ai_query('ep', w))) FROM t GROUP BY g"),
    Shape("distinct", "SELECT DISTINCT ai_query('ep', g::VARCHAR) FROM t"),
    Shape("distinct answers", "SELECT DISTINCT ai_query('cls', w) FROM t"),
    Shape("distinct on", "SELECT DISTINCT ON (ai_query('cls', w)) ai_query('cls', w) FROM t ORDER BY i"),
    Shape("count distinct", "SELECT count(DISTINCT ai_query('cls', w)) FROM t"),
    Shape("window", "SELECT i, row_number() OVER (PARTITION BY ai_query('cls', w) ORDER BY i) FROM t"),
    Shape("window of answers", "SELECT i, max(ai_query('num', w)) OVER (PARTITION BY g ORDER BY i) FROM t"),
    Shape("asked of a window", "SELECT ai_query('ep', lag(w) OVER (ORDER BY i)) FROM t"),
    Shape("qualify", "SELECT i, ai_query('ep', w) r FROM t QUALIFY row_number() OVER (PARTITION BY g ORDER BY i) <= 2"),
    Shape("qualify asks", "SELECT i FROM t QUALIFY ai_query('cls', first(w) OVER (PARTITION BY g ORDER BY i)) = 'a'"),
    Shape("pivot", "PIVOT (SELECT g, ai_query('cls', w) AS z FROM t) ON z IN ('a', 'b') USING count(*)"),
    Shape("pivot on found values", "PIVOT (SELECT g, ai_query('cls', w) AS z FROM t) ON z USING count(*)"),
    Shape("unpivot", "UNPIVOT (SELECT i, ai_query('ep', w) AS a, ai_query('cls', w) AS b FROM t) ON a, b"),
    Shape("union", "SELECT ai_query('ep', w) FROM t UNION SELECT ai_query('ep', v) FROM s"),
    Shape("union all", "SELECT i, ai_query('ep', w) FROM t UNION ALL SELECT i, ai_query('ep', v) FROM s"),
    Shape("except", "SELECT ai_query('cls', w) FROM t EXCEPT SELECT ai_query('cls', v) FROM s WHERE i < 100"),
    Shape("intersect", "SELECT ai_query('cls', w) FROM t INTERSECT SELECT ai_query('cls', v) FROM s"),
)  # fmt: skip

ORDERS = (
    Shape("order by an answer", "SELECT i, ai_query('ep', w) AS r FROM t ORDER BY r, i", ordered=True),
    Shape("order by what is not shown", "SELECT i FROM t ORDER BY ai_query('num', w), i", ordered=True),
    Shape("top answers", "SELECT i FROM t ORDER BY ai_query('num', w), i LIMIT 5", ordered=True),
    Shape("asked of the top", "SELECT i, ai_query('ep', w) AS r FROM t ORDER BY i DESC LIMIT 5", ordered=True),
    Shape("limit", "SELECT i, ai_query('ep', w) AS r FROM t LIMIT 20", ordered=True),
    Shape("limit and offset", "SELECT i, ai_query('ep', w) AS r FROM t LIMIT 20 OFFSET 1990", ordered=True),
    Shape("offset", "SELECT i, ai_query('ep', w) AS r FROM t OFFSET 2000", ordered=True),
    Shape("limit of nothing", "SELECT ai_query('ep', w) AS r FROM t LIMIT 0"),
    Shape("limit in percent", "SELECT i, ai_query('ep', w) AS r FROM t LIMIT 10%"),
    Shape("limit below", "SELECT ai_query('ep', w) FROM (SELECT * FROM t ORDER BY i LIMIT 100)", ordered=True),
    Shape("limit below and above", "SELECT ai_query('ep', w) FROM (SELECT * FROM t LIMIT 100) LIMIT 7", ordered=True),
    Shape("limit in a subquery", "SELECT i FROM t WHERE i IN (SELECT i FROM s WHERE ai_query('cls', v) = 'a' LIMIT 2)", limited=True),
    Shape("limit above a condition", f"SELECT i FROM t WHERE {YES} LIMIT 3", limited=True, ordered=True),
    Shape("limit and offset above a condition", f"SELECT i FROM t WHERE {YES} LIMIT 3 OFFSET 5", limited=True, ordered=True),
    Shape("limit above a join", f"SELECT t.i FROM t JOIN s ON t.i = s.i WHERE {YES} LIMIT 2", limited=True),
    Shape("limit above answers", "SELECT r FROM (SELECT ai_query('ep', w) AS r FROM t) WHERE r <> 'x' LIMIT 9", limited=True),
    Shape("limit of a join with answers", "SELECT r FROM (SELECT i, ai_query('ep', w) AS r FROM t) x JOIN s USING (i) LIMIT 3", limited=True),
    Shape("limit above a nested call", "SELECT ai_query('sum', ai_query('ep', w)) FROM t LIMIT 9", limited=True, ordered=True),
)  # fmt: skip

CHANGES = (
    Shape("create table as", "CREATE TABLE o AS SELECT i, ai_query('ep', w) AS r FROM t", then="FROM o", ordered=True),
    Shape("create or replace", "CREATE OR REPLACE TABLE o AS (SELECT ai_query('ep', w) AS r FROM t WHERE g = 1)", then="FROM o"),
    Shape("create a temporary table", "CREATE TEMP TABLE o AS SELECT ai_query('ep', w) AS r FROM t", then="FROM o"),
    Shape("insert", "INSERT INTO o SELECT ai_query('ep', w) FROM t WHERE g < 5", "CREATE TABLE o (r VARCHAR)", "FROM o"),
    Shape("insert into columns", "INSERT INTO o (r) SELECT ai_query('ep', w) FROM t", "CREATE TABLE o (n INT, r VARCHAR)", "FROM o"),
    Shape("insert by name", "INSERT INTO o BY NAME SELECT ai_query('ep', w) AS r FROM t", "CREATE TABLE o (n INT, r VARCHAR)", "FROM o"),
    Shape("insert returning", "INSERT INTO o SELECT i, ai_query('ep', w) FROM t RETURNING i, r", "CREATE TABLE o (i INT, r VARCHAR)", "FROM o"),
    Shape("insert or ignore", "INSERT OR IGNORE INTO o SELECT g, ai_query('ep', w) FROM t", "CREATE TABLE o (g INT PRIMARY KEY, r VARCHAR)", "SELECT g FROM o"),
    Shape("upsert", "INSERT INTO o SELECT i, ai_query('ep', w) FROM t WHERE i < 50 ON CONFLICT DO UPDATE SET r = excluded.r",
          "CREATE TABLE o (i INT PRIMARY KEY, r VARCHAR); INSERT INTO o VALUES (3, 'old')", "FROM o"),
    Shape("insert asks itself", "INSERT INTO t SELECT i, g, ai_query('ep', w), u FROM t WHERE g = 1", then="SELECT w FROM t"),
    Shape("copy to parquet", "COPY (SELECT i, ai_query('ep', w) AS r FROM t) TO '$folder/o.parquet'", then="FROM '$folder/o.parquet'", ordered=True),
    Shape("copy to csv", "COPY (SELECT i, ai_query('ep', w) AS r FROM t) TO '$folder/o.csv' (HEADER)", then="FROM read_csv('$folder/o.csv', header = true, all_varchar = true)"),
    Shape("view", "SELECT i, r FROM hidden WHERE i % 5 = 0", "CREATE VIEW hidden AS SELECT i, ai_query('ep', w) AS r FROM t"),
    Shape("view of a view", "SELECT r FROM outside", "CREATE VIEW hidden AS SELECT ai_query('ep', w) AS r FROM t; CREATE VIEW outside AS FROM hidden"),
    Shape("macro", "SELECT ask(w) FROM t", "CREATE TEMP MACRO ask(x) AS ai_query('ep', 'Tell me: ' || x)", ordered=True),
    Shape("table macro", "SELECT r FROM asked(4)", "CREATE TEMP MACRO asked(n) AS TABLE SELECT ai_query('ep', w) AS r FROM t WHERE g < n"),
    Shape("merge", "MERGE INTO o USING (SELECT i, ai_query('ep', w) AS r FROM t WHERE i < 90) x ON o.i = x.i "
          "WHEN MATCHED THEN UPDATE SET r = x.r WHEN NOT MATCHED THEN INSERT VALUES (x.i, x.r)",
          "CREATE TABLE o (i BIGINT, r VARCHAR); INSERT INTO o VALUES (3, 'old'), (900, 'old')", "FROM o"),
    Shape("update", "UPDATE t SET w = ai_query('ep', w) WHERE g = 2", then="SELECT i, w FROM t"),
    Shape("update where", f"UPDATE t SET g = -1 WHERE {YES}", then="SELECT i, g FROM t"),
    Shape("update from", "UPDATE t SET w = x.r FROM (SELECT i, ai_query('ep', v) AS r FROM s) x WHERE t.i = x.i", then="SELECT i, w FROM t"),
    Shape("delete", f"DELETE FROM t WHERE {YES}", then="SELECT i FROM t"),
    Shape("delete returning", f"DELETE FROM t WHERE {YES} AND g = 4 RETURNING i", then="SELECT i FROM t"),
    Shape("prepared", "EXECUTE p", "PREPARE p AS SELECT i, ai_query('ep', w) FROM t WHERE g < 6"),
    Shape("prepared with a parameter", "EXECUTE p(4)", "PREPARE p AS SELECT i, ai_query('ep', w) FROM t WHERE g < $1"),
    Shape("generated column", "SELECT ai_query('ep', x) FROM o",
          "CREATE TABLE o (w VARCHAR, x VARCHAR AS ('about ' || w)); INSERT INTO o (w) SELECT w FROM t"),
    Shape("parquet file", "SELECT ai_query('ep', w) FROM '$folder/t.parquet' WHERE g < 7", ordered=True),
    Shape("csv file", "SELECT ai_query('ep', w) FROM '$folder/t.csv'", ordered=True),
    Shape("pandas frame", "SELECT ai_query('ep', w) FROM pandas_t", ordered=True),
    Shape("polars frame", "SELECT ai_query('ep', w) FROM polars_t", ordered=True),
    Shape("arrow table", "SELECT ai_query('ep', w) FROM arrow_t", ordered=True),
    Shape("temporary table", "SELECT ai_query('ep', w) FROM mine", "CREATE TEMP TABLE mine AS FROM t", ordered=True),
    Shape("temporary view", "SELECT r FROM mine", "CREATE TEMP VIEW mine AS SELECT ai_query('ep', w) AS r FROM t"),
    Shape("uncommitted rows", "SELECT ai_query('ep', w) FROM t", "BEGIN; INSERT INTO t SELECT i, 0, 'new' || i, 'n' FROM range(3000) r(i)"),
    Shape("uncommitted deletion", "SELECT ai_query('ep', w) FROM t", "BEGIN; DELETE FROM t WHERE g > 2"),
    Shape("second statement of a transaction", "SELECT ai_query('cls', w) FROM t", "BEGIN; SELECT ai_query('ep', w) FROM t WHERE i < 40"),
    Shape("other schema", "SELECT ai_query('ep', w) FROM t",
          "CREATE SCHEMA other; CREATE TABLE other.t AS SELECT 'other' || i // 8 AS w FROM range(2100) r(i); USE other"),
    Shape("attached database", "SELECT ai_query('ep', w) FROM theirs.t", "ATTACH ':memory:' AS theirs; CREATE TABLE theirs.t AS FROM t"),
    Shape("variable", "SELECT ai_query('ep', w || getvariable('tail')) FROM t", "SET VARIABLE tail = '?'"),
    Shape("sample with a seed", "SELECT ai_query('ep', u) FROM t USING SAMPLE 300 ROWS (reservoir, 42)", fickle=True),
)  # fmt: skip

FICKLE = (
    Shape("random prompts", "SELECT ai_query('ep', g || random()) FROM t", fickle=True),
    Shape("random rows", "SELECT ai_query('ep', w) FROM t WHERE random() < 2", fickle=True),
    Shape("sequence", "SELECT ai_query('ep', w || nextval('q')) FROM t", "CREATE SEQUENCE q", fickle=True),
    Shape("now", "SELECT ai_query('ep', w || now()) FROM t", fickle=True),
    Shape("uuid", "SELECT ai_query('ep', w || uuid()) FROM t", fickle=True),
    Shape("random behind a view", "SELECT r FROM hidden", "CREATE VIEW hidden AS SELECT i, ai_query('ep', w || random()) AS r FROM t", fickle=True),
    Shape("random behind a macro", "SELECT ask(w) FROM t", "CREATE TEMP MACRO ask(x) AS ai_query('ep', x || random())", fickle=True),
    Shape("sequence behind a view", "SELECT r FROM hidden", "CREATE SEQUENCE q; CREATE VIEW hidden AS SELECT ai_query('ep', w || nextval('q')) AS r FROM t", fickle=True),
)  # fmt: skip

SHAPES = SELECTS + CONDITIONS + JOINS + SUBQUERIES + NESTED + GROUPS + ORDERS + CHANGES + FICKLE

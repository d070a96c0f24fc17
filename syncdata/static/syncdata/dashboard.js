// The dashboard: asks for news every few seconds, exchanges what has changed, and draws the charts.
"use strict";
(() => {
    const POLL_MS = 3000;
    const page = document.getElementById("syncdata-live");
    const data = document.getElementById("syncdata-charts-data");
    if (!data) {
        return;
    }
    const locale = document.documentElement.lang || undefined;
    const number = new Intl.NumberFormat(locale);
    const time = new Intl.DateTimeFormat(locale, {dateStyle: "medium", timeStyle: "short"});

    function duration(seconds) {
        const units = [[86400, "day"], [3600, "hour"], [60, "minute"], [1, "second"]];
        const [size, unit] = units.find(([size]) => seconds >= size) || units[3];
        return new Intl.NumberFormat(locale, {
            style: "unit", unit, unitDisplay: "short", maximumFractionDigits: size === 1 ? 0 : 1,
        }).format(seconds / size);
    }

    const color = (name) => getComputedStyle(page).getPropertyValue(name).trim();

    // Charts. Each is drawn with uPlot, read out by its cursor (mouse or arrow keys), and told as a table.

    function axes(format) {
        const style = {stroke: () => color("--body-quiet-color"), grid: {stroke: () => color("--hairline-color"), width: 1}, ticks: {show: false}};
        return [{...style}, {...style, size: 64, values: (plot, ticks) => ticks.map((tick) => tick === null ? "" : format(tick))}];
    }

    function filled(name) {
        return {stroke: () => color(name), fill: () => color(name), points: {show: false}, paths: uPlot.paths.bars({size: [0.7, 48]})};
    }

    const NAMES = ["added", "updated", "deleted"];
    const CHARTS = {
        applied: {
            // Bars that stand on each other: drawn from the highest sum down, each over the one before.
            columns: (rows) => {
                const sums = [rows.added, rows.updated, rows.deleted];
                const upTo = (last) => rows.time.map((_, i) => sums.slice(0, last + 1).reduce((sum, values) => sum + values[i], 0));
                return [rows.time, upTo(2), upTo(1), upTo(0)];
            },
            series: () => [{}, filled("--syncdata-deleted"), filled("--syncdata-updated"), filled("--syncdata-added")],
            // By the data: of a single bar uPlot makes years.
            range: ({data: [times]}) => [times[0] - 43200, times[times.length - 1] + 43200],
            tick: (value) => number.format(value),
            cells: (rows, i) => NAMES.map((name) => number.format(rows[name][i])),
        },
        lag: {
            columns: (rows) => [rows.time, rows.lag_s],
            series: () => [{}, {stroke: () => color("--syncdata-lag"), width: 2, points: {show: true, size: 5}}],
            range: () => [Date.now() / 1000 - 86400, Date.now() / 1000],
            tick: duration,
            cells: (rows, i) => [duration(rows.lag_s[i])],
        },
    };

    class Chart {
        constructor(section) {
            this.kind = CHARTS[section.dataset.chart];
            this.name = section.dataset.chart;
            this.box = section.querySelector(".syncdata-plot");
            this.readout = section.querySelector(".syncdata-readout");
            this.empty = section.querySelector(".syncdata-empty");
            this.body = section.querySelector("tbody");
            this.labels = [...section.querySelectorAll(".syncdata-key")].map((key) => key.textContent);
            this.plot = null;
            this.index = null;
            this.box.addEventListener("keydown", (event) => this.step(event));
            new ResizeObserver(() => this.plot?.setSize(this.size())).observe(this.box);
        }

        size() {
            return {width: Math.max(this.box.clientWidth, 200), height: 220};
        }

        update(rows) {
            this.rows = rows;
            const isEmpty = rows.time.length === 0;
            this.box.hidden = this.readout.hidden = isEmpty;
            this.empty.hidden = !isEmpty;
            this.body.replaceChildren(...rows.time.map((moment, i) => {
                const row = document.createElement("tr");
                for (const text of [time.format(moment * 1000), ...this.kind.cells(rows, i)]) {
                    row.insertCell().textContent = text;
                }
                [...row.cells].slice(1).forEach((cell) => cell.classList.add("syncdata-number"));
                return row;
            }).reverse());
            if (isEmpty) {
                return;
            }
            const columns = this.kind.columns(rows);
            if (this.plot) {
                this.plot.setData(columns);
            } else {
                this.draw(columns);
            }
        }

        draw(columns) {
            this.plot = new uPlot({
                ...this.size(),
                series: this.kind.series(),
                axes: axes(this.kind.tick),
                scales: {x: {range: this.kind.range}, y: {range: (plot, min, max) => [0, Math.max(max, 1) * 1.05]}},
                legend: {show: false},
                cursor: {drag: {x: false, y: false}, y: false},
                hooks: {setCursor: [(plot) => this.tell(plot.cursor.idx)]},
            }, columns, this.box);
        }

        tell(index) {
            this.index = index ?? this.index;
            if (index === null || index === undefined) {
                this.readout.textContent = "\u00a0";
                return;
            }
            const cells = this.kind.cells(this.rows, index).map((text, i) => `${this.labels[i]} ${text}`);
            this.readout.textContent = `${time.format(this.rows.time[index] * 1000)}: ${cells.join(", ")}`;
        }

        step(event) {
            const steps = {ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity};
            if (!(event.key in steps) || !this.plot) {
                return;
            }
            event.preventDefault();
            const last = this.rows.time.length - 1;
            const index = Math.min(Math.max((this.index ?? last + 1) + steps[event.key], 0), last);
            this.plot.setCursor({left: this.plot.valToPos(this.rows.time[index], "x"), top: 0});
            this.tell(index);
            this.readout.setAttribute("aria-live", "polite");  // whoever uses the keys wants to hear
        }
    }

    const charts = [...page.querySelectorAll(".syncdata-chart")].map((section) => new Chart(section));
    const update = (all) => charts.forEach((chart) => chart.update(all[chart.name]));
    update(JSON.parse(data.textContent));

    const redraw = () => charts.forEach((chart) => chart.plot?.redraw(false));
    new MutationObserver(redraw).observe(document.documentElement, {attributeFilter: ["data-theme"]});
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

    // News.

    const shown = new Map();
    const announce = document.getElementById("syncdata-announce");
    const connection = document.getElementById("syncdata-connection");
    let announced = null;

    function exchange(name, html) {
        const section = document.getElementById(`syncdata-${name}`);
        if (!section || shown.get(name) === html) {
            return;
        }
        shown.set(name, html);
        const focused = section.contains(document.activeElement) ? document.activeElement.id : "";
        section.innerHTML = html;
        if (focused) {
            document.getElementById(focused)?.focus({preventScroll: true});
        }
    }

    function complain(text) {
        connection.textContent = text;
        connection.hidden = text === "";
    }

    async function ask() {
        let response;
        try {
            response = await fetch(page.dataset.url, {headers: {Accept: "application/json"}, redirect: "manual"});
        } catch {
            complain(page.dataset.lost);
            return true;
        }
        if (response.type === "opaqueredirect" || response.status === 403) {
            complain(page.dataset.gone);
            return false;
        }
        if (!response.ok) {
            complain(page.dataset.lost);
            return true;
        }
        const news = await response.json();
        complain("");
        Object.entries(news.sections).forEach(([name, html]) => exchange(name, html));
        if (news.charts) {
            update(news.charts);
        }
        if (announced !== null && announced !== news.announce) {
            announce.textContent = news.announce;
        }
        announced = news.announce;
        page.dataset.updated = Date.now();
        return true;
    }

    let timer = null;

    async function poll() {
        timer = null;
        if (document.hidden) {
            return;  // asked again when somebody looks
        }
        if (await ask() && !document.hidden && timer === null) {
            timer = setTimeout(poll, POLL_MS);
        }
    }

    document.addEventListener("visibilitychange", () => {
        clearTimeout(timer);
        timer = null;
        if (!document.hidden) {
            poll();
        }
    });
    timer = setTimeout(poll, POLL_MS);
})();

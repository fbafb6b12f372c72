"use strict";
(() => {
  const { visible, live, tables } = window.nilatent;
  const MAX_COLUMNS = 8;
  const MAX_IDS = 200;
  const NARROW = 560;

  // Plotly reads <b>, <a> and entities in its labels; text from data must come out as it went in.
  const shown = (value) => visible(value).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  const traces = (data, chosen, picked, ringed) => {
    const column = data.columns[chosen.colour];
    const x = data.axes[chosen.x].values;
    const y = data.axes[chosen.y].values;
    const at = (rows) => ({
      type: "scatter",
      mode: "markers",
      x: rows.map((row) => x[row]),
      y: rows.map((row) => y[row]),
      customdata: rows,
      text: rows.map((row) => `${shown(data.scan[row])}<br>${shown(column.name)}: ${shown(column.values[row] ?? "not given")}`),
      hovertemplate: "%{text}<extra></extra>",
      ...(picked ? { selectedpoints: rows.flatMap((row, place) => (picked.has(row) ? [place] : [])) } : {}),
    });
    const all = data.scan.map((_, row) => row);
    const ring = {
      ...at(ringed === null ? [] : [ringed]),
      marker: { size: 15, color: css("--ink"), symbol: "circle-open", line: { width: 2 } }, showlegend: false, hoverinfo: "skip",
      hovertemplate: undefined, selectedpoints: undefined,
    };
    if (column.numeric) {
      const known = all.filter((row) => column.values[row] !== null);
      const unknown = all.filter((row) => column.values[row] === null);
      const bar = { title: { text: shown(column.name), side: "right" }, thickness: 10, outlinewidth: 0, len: 0.8 };
      const marker = { size: 7, opacity: 0.9, color: known.map((row) => column.values[row]), colorscale: "Viridis", colorbar: bar };
      const rest = { ...at(unknown), marker: { size: 7, color: css("--muted"), symbol: "x-thin-open" }, name: "not given" };
      return [{ ...at(known), marker, showlegend: false }, ...(unknown.length ? [rest] : []), ring];
    }
    return [
      ...column.levels.map((level) => {
        const rows = all.filter((row) => column.values[row] === level.name);
        const marker = { size: 7, opacity: 0.85, color: level.colour, symbol: level.symbol };
        return { ...at(rows), name: shown(level.name), marker };
      }),
      ring,
    ];
  };

  const layout = (data, chosen, mode, narrow) => {
    const ink = css("--ink");
    const line = css("--line");
    const axis = (name) => ({
      title: { text: shown(data.axes[name].label) }, gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true,
    });
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: ink, family: css("--sans"), size: 13 },
      xaxis: axis(chosen.x), yaxis: axis(chosen.y), margin: { l: 56, r: 16, t: narrow ? 36 : 8, b: 48 },
      // Above the dots, or below them where the buttons need the room above.
      legend: { orientation: "h", x: 0, ...(narrow ? { y: -0.2, yanchor: "top" } : { y: 1.02, yanchor: "bottom" }) }, showlegend: true, hovermode: "closest", dragmode: mode,
      uirevision: `${chosen.x} ${chosen.y}`,
      modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--muted"), activecolor: css("--accent") },
    };
  };

  const fill = (select, names, initial) => {
    names.forEach(([value, label]) => select.append(new Option(visible(label), value, false, value === initial)));
  };

  // The rows of the table below: the scan, and what is known of it.
  const listed = (data, table) => {
    const columns = data.columns.slice(0, MAX_COLUMNS);
    const head = (name, numeric) => {
      const made = Object.assign(document.createElement("th"), { scope: "col", textContent: visible(name) });
      if (numeric) made.className = "number";
      return made;
    };
    table.tHead.rows[0].append(head("scan", false), ...columns.map((column) => head(column.name, column.numeric)));
    const cell = (column, row) => {
      const value = column.values[row];
      if (value === null || value === undefined) return { text: "–" };
      return column.numeric ? { text: String(value).replace("-", "−"), key: value } : { text: String(value) };
    };
    return data.scan.map((scan, row) => ({ cells: [{ text: scan }, ...columns.map((column) => cell(column, row))], position: row }));
  };

  const counts = (data, colour, rows) => {
    const column = data.columns[colour];
    if (column.numeric) {
      const values = rows.map((row) => column.values[row]).filter((value) => value !== null);
      if (!values.length) return `${column.name}: not given`;
      const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
      return `${column.name}: mean ${mean.toPrecision(3)}, from ${Math.min(...values)} to ${Math.max(...values)}`;
    }
    return column.levels
      .map((level) => [level.name, rows.filter((row) => column.values[row] === level.name).length])
      .map(([name, n]) => `${name}: ${n}`)
      .join(" · ");
  };

  for (const box of document.querySelectorAll(".scatter")) {
    if (!window.Plotly) continue;
    const data = JSON.parse(box.querySelector(':scope > script').textContent);
    const select = Object.fromEntries([...box.querySelectorAll(":scope > .choices select")].map((one) => [one.dataset.role, one]));
    const axes = data.axes.map((axis, index) => [String(index), axis.label]);
    fill(select.colour, data.columns.map((column, index) => [String(index), column.name]), "0");
    fill(select.x, axes, "0");
    fill(select.y, axes, String(Math.min(1, axes.length - 1)));
    const canvas = box.querySelector(".canvas");
    const said = box.querySelector('.selection [data-role="picked"]');
    const ids = box.querySelector('[data-role="ids"]');
    const table = box.querySelector("table");
    const viewer = window.nilatent.viewer;
    const state = { picked: null, ringed: null, mode: "lasso" };
    box.hidden = false;

    const draw = () => {
      const chosen = { colour: Number(select.colour.value), x: Number(select.x.value), y: Number(select.y.value) };
      // A closed list: by default Plotly offers a button that sends the chart, and so the participants, to its cloud.
      const buttons = [["lasso2d", "select2d", "zoom2d", "pan2d"], ["zoomIn2d", "zoomOut2d", "resetScale2d", "toImage"]];
      const options = {
        responsive: true, displaylogo: false, displayModeBar: true, modeBarButtons: buttons, showSendToCloud: false,
        plotlyServerURL: "", typesetMath: false,
      };
      window.Plotly.react(canvas, traces(data, chosen, state.picked, state.ringed), layout(data, chosen, state.mode, canvas.clientWidth < NARROW), options);
    };

    const tell = () => {
      const rows = state.picked === null ? data.scan.map((_, row) => row) : [...state.picked].sort((a, b) => a - b);
      const start = state.picked === null ? `All ${rows.length} scans` : `${rows.length} of ${data.scan.length} scans selected`;
      said.textContent = visible(`${start} (${counts(data, Number(select.colour.value), rows)})`);
      const more = rows.length > MAX_IDS ? ` and ${rows.length - MAX_IDS} more` : "";
      ids.replaceChildren();
      if (state.picked === null) return;
      rows.slice(0, MAX_IDS).forEach((row, place) => {
        // Each id is isolated, so that one written from right to left leaves its neighbours in their places.
        ids.append(place ? ", " : "", Object.assign(document.createElement("bdi"), { textContent: visible(data.scan[row]) }));
      });
      ids.append(more);
    };

    const rows = listed(data, table);
    const shownTable = live(table, rows);
    tables.set(table.id, shownTable);

    const pick = (picked) => {
      state.picked = picked;
      shownTable.choose(picked);
      tell();
    };
    const show = (row) => {
      state.ringed = row;
      draw();
      viewer?.show(data.scan[row]);
    };

    if (viewer) {
      viewer.onShow((scan) => {
        const row = data.scan.indexOf(scan);
        if (row >= 0 && row !== state.ringed) {
          state.ringed = row;
          draw();
        }
      });
      shownTable.eachRow(({ row, position }) => {
        const head = row.cells[0];
        const opener = window.nilatent.button("", () => show(position));
        opener.className = "opener";
        opener.title = "Show this scan";
        opener.append(...head.childNodes);
        head.append(opener);
      });
    }
    draw();
    tell();
    // The figure of the same scatter stands in for it only where scripts do not run.
    box.closest("section").classList.add("live");
    canvas.on("plotly_click", (event) => show(event.points[0].customdata));
    canvas.on("plotly_selected", (event) => {
      if (!event) return;
      pick(new Set(event.points.map((point) => point.customdata).filter((row) => row !== undefined)));
    });
    canvas.on("plotly_deselect", () => { pick(null); draw(); });
    canvas.on("plotly_relayout", (change) => { if (change.dragmode) state.mode = change.dragmode; });
    Object.values(select).forEach((one) => one.addEventListener("change", () => { draw(); tell(); }));
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  }
})();

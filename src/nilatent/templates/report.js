"use strict";
(() => {
  const text = (cell) => cell.textContent.trim();
  const key = (cell) => (cell.dataset.key === undefined ? text(cell) : Number(cell.dataset.key));
  const empty = (value) => value === "" || value === "–" || Number.isNaN(value);

  const compare = (a, b) => {
    if (empty(a) || empty(b)) return Number(empty(a)) - Number(empty(b));
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b), undefined, { numeric: true });
  };

  const sortBy = (table, position, direction) => {
    const body = table.tBodies[0];
    const rows = [...body.rows];
    rows.sort((one, other) => {
      const a = key(one.cells[position]);
      const b = key(other.cells[position]);
      return empty(a) || empty(b) ? compare(a, b) : direction * compare(a, b);
    });
    body.append(...rows);
  };

  for (const table of document.querySelectorAll("table[data-sortable]")) {
    [...table.tHead.rows[0].cells].forEach((head, position) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const direction = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
        sortBy(table, position, direction);
      });
    });
  }

  for (const input of document.querySelectorAll("input[data-filter]")) {
    const rows = [...document.getElementById(input.dataset.filter).tBodies[0].rows];
    const count = input.parentElement.querySelector(".count");
    input.addEventListener("input", () => {
      const wanted = input.value.toLocaleLowerCase();
      for (const row of rows) row.hidden = !row.textContent.toLocaleLowerCase().includes(wanted);
      const left = rows.filter((row) => !row.hidden).length;
      count.textContent = left === rows.length ? `${left} rows` : `${left} of ${rows.length} rows`;
    });
  }

  // Plotly reads <b>, <a> and entities in its labels; text from data must come out as it went in.
  const shown = (value) => String(value).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  const traces = (data, chosen) => {
    const column = data.columns[chosen.colour];
    const at = (rows) => ({
      type: "scatter",
      mode: "markers",
      x: rows.map((row) => data.axes[chosen.x].values[row]),
      y: rows.map((row) => data.axes[chosen.y].values[row]),
      text: rows.map((row) => `${shown(data.scan[row])}<br>${shown(column.name)}: ${shown(column.values[row] ?? "not given")}`),
      hovertemplate: "%{text}<extra></extra>",
    });
    const all = data.scan.map((_, row) => row);
    if (column.numeric) {
      const known = all.filter((row) => column.values[row] !== null);
      const unknown = all.filter((row) => column.values[row] === null);
      const bar = { title: { text: shown(column.name), side: "right" }, thickness: 10, outlinewidth: 0, len: 0.8 };
      const marker = { size: 7, opacity: 0.9, color: known.map((row) => column.values[row]), colorscale: "Viridis", colorbar: bar };
      const rest = { ...at(unknown), marker: { size: 7, color: css("--muted"), symbol: "x-thin-open" }, name: "not given" };
      return [{ ...at(known), marker, showlegend: false }, ...(unknown.length ? [rest] : [])];
    }
    return column.levels.map((level) => {
      const rows = all.filter((row) => column.values[row] === level.name);
      const marker = { size: 7, opacity: 0.85, color: level.colour, symbol: level.symbol };
      return { ...at(rows), name: shown(level.name), marker };
    });
  };

  const layout = (data, chosen) => {
    const ink = css("--ink");
    const line = css("--line");
    const axis = (name) => ({
      title: { text: shown(data.axes[name].label) }, gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true,
    });
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: ink, family: css("--sans"), size: 13 },
      xaxis: axis(chosen.x), yaxis: axis(chosen.y), margin: { l: 56, r: 16, t: 8, b: 48 },
      legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 }, showlegend: true, hovermode: "closest", dragmode: "zoom",
      modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--muted"), activecolor: css("--accent") },
    };
  };

  const fill = (select, names, initial) => {
    names.forEach(([value, label]) => select.append(new Option(label, value, false, value === initial)));
  };

  for (const box of document.querySelectorAll(".scatter")) {
    if (!window.Plotly) continue;
    const data = JSON.parse(box.querySelector("script").textContent);
    const select = Object.fromEntries([...box.querySelectorAll("select")].map((one) => [one.dataset.role, one]));
    const axes = data.axes.map((axis, index) => [String(index), axis.label]);
    fill(select.colour, data.columns.map((column, index) => [String(index), column.name]), "0");
    fill(select.x, axes, "0");
    fill(select.y, axes, String(Math.min(1, axes.length - 1)));
    const canvas = box.querySelector(".canvas");
    const draw = () => {
      const chosen = { colour: Number(select.colour.value), x: Number(select.x.value), y: Number(select.y.value) };
      // A closed list: by default Plotly offers a button that sends the chart, and so the participants, to its cloud.
      const buttons = [["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]];
      const options = {
        responsive: true, displaylogo: false, modeBarButtons: buttons, showSendToCloud: false, plotlyServerURL: "", typesetMath: false,
      };
      window.Plotly.react(canvas, traces(data, chosen), layout(data, chosen), options);
    };
    box.hidden = false;
    box.closest("section").classList.add("live");
    draw();
    Object.values(select).forEach((one) => one.addEventListener("change", draw));
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  }
})();

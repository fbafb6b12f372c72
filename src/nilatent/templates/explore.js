"use strict";
// The explorer's page: scans on a map, two of them, moved latents, means. Text from data goes in by textContent, or into
// plotly's labels escaped; volumes come one by one.
(() => {
  const { visible, save, button } = window.nilatent;
  const { find, minus, fault, ask, query, panels, panelOf, latest, busy } = window.nilatent.explorer;
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  // Plotly reads <b>, <a> and entities in its labels; text from data must come out as it went in.
  const shown = (value) => visible(value).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const MAX_IDS = 500;
  const N_SLIDERS = 6;
  const KNOWN = ["this person had a say in the training", "the model was trained on it", "the model has not seen this person"];

  let study = null;
  const pieces = new Map();
  const piece = async (what, number) => {
    const key = `${what} ${number}`;
    if (!pieces.has(key)) pieces.set(key, (await ask(query(`/api/${what}`, { number }))).json());
    return pieces.get(key);
  };

  // ------------------------------------------------------------------------------------------------------------- scans
  const rows = new Map();
  const picked = { a: "", b: "" };
  const scanInput = (side) => panels[side].figure.querySelector("input.scan");
  const makeScan = (side) => latest(() => busy(panels[side], async () => {
    const scan = picked[side];
    if (!scan) return;
    const kind = panels[side].figure.querySelector("select.kind").value;
    const path = query("/api/scan", { scan, kind });
    const buffer = await (await ask(path)).arrayBuffer();
    const words = `${kind}, ${KNOWN[study.scans[rows.get(scan)][1]]};`;
    await panels[side].show(buffer, { request: { path }, title: scan, words, file: `${scan}_${kind}`, signed: kind === "error", key: `${scan} ${kind}` });
  }));
  const drawScan = {};
  const pick = (side, scan) => {
    if (!rows.has(scan)) { fault(`There is no scan “${scan}” in this run.`); return; }
    picked[side] = scan;
    scanInput(side).value = scan;
    drawScan[side]();
    drawPlot();
    offerGroups();
    if (find("start").value === side) restart();
  };

  // --------------------------------------------------------------------------------------------------------------- map
  let chosen = null;
  let mode = "lasso";
  const traces = (x, y, column) => {
    const at = (list) => ({
      type: "scatter", mode: "markers", x: list.map((row) => x.values[row]), y: list.map((row) => y.values[row]), customdata: list,
      text: list.map((row) => `${shown(study.scans[row][0])}<br>${shown(column.name)}: ${shown(column.values[row] ?? "not given")}`),
      hovertemplate: "%{text}<extra></extra>",
      ...(chosen ? { selectedpoints: list.flatMap((row, place) => (chosen.has(row) ? [place] : [])) } : {}),
    });
    const all = study.scans.map((_, row) => row);
    const rings = ["a", "b"].filter((side) => picked[side]).map((side) => {
      const row = rows.get(picked[side]);
      return {
        type: "scatter", mode: "markers+text", x: [x.values[row]], y: [y.values[row]], text: [side.toUpperCase()], textposition: "top center",
        marker: { size: 15, color: css("--ink"), symbol: "circle-open", line: { width: 2 } }, showlegend: false, hoverinfo: "skip",
      };
    });
    if (!column.numeric) {
      return [...column.levels.map((level) => ({
        ...at(all.filter((row) => column.values[row] === level.name)), name: shown(level.name),
        marker: { size: 7, opacity: 0.85, color: level.colour, symbol: level.symbol },
      })), ...rings];
    }
    const known = all.filter((row) => column.values[row] !== null);
    const unknown = all.filter((row) => column.values[row] === null);
    const bar = { title: { text: shown(column.name), side: "right" }, thickness: 10, outlinewidth: 0, len: 0.8 };
    const marker = { size: 7, opacity: 0.9, color: known.map((row) => column.values[row]), colorscale: "Viridis", colorbar: bar };
    const rest = { ...at(unknown), marker: { size: 7, color: css("--muted"), symbol: "x-thin-open" }, name: "not given" };
    return [{ ...at(known), marker, showlegend: false }, ...(unknown.length ? [rest] : []), ...rings];
  };

  const drawPlot = latest(async () => {
    const [x, y, column] = await Promise.all([piece("axis", find("x").value), piece("axis", find("y").value), piece("column", find("colour").value)]);
    const line = css("--line");
    const axis = (one) => ({ title: { text: shown(one.label) }, gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true });
    const layout = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: css("--ink"), family: css("--sans"), size: 13 },
      xaxis: axis(x), yaxis: axis(y), margin: { l: 56, r: 16, t: 8, b: 48 }, hovermode: "closest", dragmode: mode,
      legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 }, showlegend: true, uirevision: `${x.label} ${y.label}`,
      modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--muted"), activecolor: css("--accent") },
    };
    // A closed list: by default Plotly offers a button that sends the chart, and so the participants, to its cloud.
    const buttons = [["lasso2d", "select2d", "zoom2d", "pan2d"], ["zoomIn2d", "zoomOut2d", "resetScale2d", "toImage"]];
    await window.Plotly.react(find("plot"), traces(x, y, column), layout, { responsive: true, displaylogo: false, modeBarButtons: buttons });
    find("plot").setAttribute("aria-label", visible(`Scatter of ${study.scans.length} scans: ${x.label} and ${y.label}, coloured by ${column.name}`));
  });

  const choose = (list) => {
    chosen = list;
    const names = chosen ? [...chosen].map((row) => study.scans[row][0]) : [];
    find("chosen").textContent = chosen ? `${names.length} of ${study.scans.length} scans are chosen.` : "No group is chosen.";
    find("chosen-box").hidden = find("chosen-tools").hidden = !names.length;
    const more = names.length > MAX_IDS ? ` … and ${names.length - MAX_IDS} more` : "";
    find("ids").textContent = visible(names.slice(0, MAX_IDS).join(", ")) + more;
    offerGroups();
  };

  // ----------------------------------------------------------------------------------------------------------- sliders
  let places = [];
  const moved = new Map();
  const start = () => picked[find("start").value] || null;
  const counted = /^(\d+(?:\.\d+)?) (\S.*)$/;
  const amount = (one, value) => {
    if (one.levels.length) return Math.abs(value) < 1e-9 ? "unmoved" : `${Math.abs(value).toPrecision(2)} × towards ${one.levels[value > 0 ? 0 : 1]}`;
    const unit = one.unit.match(counted);
    const number = Number((unit ? value * Number(unit[1]) : value).toPrecision(3));
    const text = `${number > 0 && !one.is_place ? "+" : ""}${minus(String(number))}`;
    return unit ? `${text} ${unit[2]}` : `${text} × ${one.unit}`;
  };
  const basis = (one) => `fitted on ${one.n_subjects} training subjects${one.held.length ? `, with ${one.held.join(", ")} held` : ""}`;

  const addSlider = (number) => {
    const one = study.sliders[number];
    const box = Object.assign(document.createElement("div"), { className: "slider" });
    const input = Object.assign(document.createElement("input"), { type: "range", step: "any", id: `slider-${number}` });
    const label = Object.assign(document.createElement("label"), { htmlFor: input.id, textContent: visible(one.name) });
    const small = Object.assign(document.createElement("small"), { textContent: visible(basis(one)), hidden: one.is_place });
    const said = Object.assign(document.createElement("output"), { htmlFor: input.id });
    const back = button("back", () => { place(); drawMoved(); });
    back.setAttribute("aria-label", visible(`${one.name}: back to the start`));
    const tell = () => {
      const far = moved.get(number).far ? ", beyond all training scans" : "";
      said.textContent = visible(amount(one, Number(input.value))) + far;
      said.classList.toggle("far", Boolean(far));
      input.setAttribute("aria-valuetext", said.textContent);
    };
    const place = () => {
      input.min = Math.min(one.low, places[number]);
      input.max = Math.max(one.high, places[number]);
      input.value = places[number];
      moved.get(number).far = false;
      tell();
    };
    moved.set(number, { input, tell, place, far: false });
    input.addEventListener("input", () => { tell(); drawMoved(); });
    // A slider without steps of its own would go by a tenth of the way for a key.
    input.addEventListener("keydown", (event) => {
      const way = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 }[event.key];
      if (!way) return;
      event.preventDefault();
      input.value = Number(input.value) + (way * (one.high - one.low)) / 40;
      input.dispatchEvent(new Event("input"));
    });
    box.append(label, said, back, input, small);
    find("sliders").append(box);
    place();
    offerSliders();
  };
  const offerSliders = () => {
    find("more").replaceChildren(new Option("choose", ""), ...study.sliders.flatMap((one, number) => (moved.has(number) ? [] : [new Option(visible(one.name), number)])));
  };

  const drawMoved = latest(() => busy(panels.moved, async () => {
    const moves = {};
    moved.forEach(({ input }, number) => {
      const units = Number(input.value) - places[number];
      if (Math.abs(units) > 1e-9) moves[number] = units;
    });
    const show = find("show").value;
    const body = { scan: start(), moves, show };
    const answer = await ask("/api/decode", body);
    const far = new Set((answer.headers.get("X-Nilatent-Beyond") ?? "").split(",").filter(Boolean).map(Number));
    moved.forEach((one, number) => { one.far = far.has(number); one.tell(); });
    const buffer = await answer.arrayBuffer();
    const title = body.scan ?? "mean of the training scans";
    const names = Object.entries(moves).map(([number, units]) => `${study.sliders[number].name} ${amount({ ...study.sliders[number], is_place: false }, units)}`);
    const words = `${show === "change" ? "change from the start" : "drawn"}, ${names.length ? `moved: ${names.join(", ")}` : "not moved"};`;
    const key = `${title} ${show} ${JSON.stringify(moves)}`;
    await panels.moved.show(buffer, { request: { path: "/api/decode", body }, title, words, file: `${title}_${show}_synthetic`, signed: show === "change", key });
  }));
  const restart = latest(async () => {
    const scan = start();
    ({ places } = await (await ask(query("/api/places", scan ? { scan } : {}))).json());
    moved.forEach((one) => one.place());
    await drawMoved();
  });

  // ------------------------------------------------------------------------------------------------------------- means
  const groups = new Map();
  const offerGroups = async () => {
    const column = await piece("column", find("colour").value);
    const all = study.scans.map((_, row) => row);
    groups.clear();
    groups.set("all scans", all);
    ["a", "b"].filter((side) => picked[side]).forEach((side) => groups.set(`scan ${side.toUpperCase()}: ${picked[side]}`, [rows.get(picked[side])]));
    if (chosen?.size) groups.set("the chosen scans", [...chosen]);
    if (chosen?.size && chosen.size < all.length) groups.set("the scans not chosen", all.filter((row) => !chosen.has(row)));
    for (const level of column.numeric ? [] : column.levels) {
      groups.set(`${column.name}: ${level.name}`, all.filter((row) => column.values[row] === level.name));
    }
    for (const [id, first] of [["one", []], ["two", ["none"]]]) {
      const before = find(id).value;
      const names = [...first, ...groups.keys()];
      find(id).replaceChildren(...names.map((name) => new Option(visible(groups.has(name) ? `${name} (${groups.get(name).length})` : name), name)));
      find(id).value = names.includes(before) ? before : names[0];
    }
  };
  const drawMean = latest(() => busy(panels.mean, async () => {
    const [one, two, of] = ["one", "two", "of"].map((id) => find(id).value);
    const scans = (name) => groups.get(name).map((row) => study.scans[row][0]);
    const body = { scans: scans(one), minus: groups.has(two) ? scans(two) : null, of };
    const answer = await ask("/api/mean", body);
    const counts = answer.headers.get("X-Nilatent-Counts").split(",");
    const n = (at) => `${counts[at]} ${counts[at] === "1" ? "scan" : "scans"} of ${counts[at + 1]} ${counts[at + 1] === "1" ? "person" : "persons"}`;
    const title = groups.has(two) ? `${one} minus ${two}` : one;
    const words = `mean of ${of}, ${n(0)}${counts.length > 2 ? ` minus ${n(2)}` : ""};`;
    await panels.mean.show(await answer.arrayBuffer(), {
      request: { path: "/api/mean", body }, title, words, file: `mean_of_${of}_${title}`, signed: counts.length > 2, key: `${title} ${of}`,
    });
  }));

  // ------------------------------------------------------------------------------------------------------------- start
  const listen = () => {
    const on = (id, event, act) => find(id).addEventListener(event, act);
    ["x", "y"].forEach((id) => on(id, "change", drawPlot));
    on("colour", "change", () => { drawPlot(); offerGroups(); });
    on("start", "change", restart);
    on("show", "change", drawMoved);
    on("reckon", "click", drawMean);
    on("more", "change", (event) => { if (event.target.value) addSlider(Number(event.target.value)); });
    on("width", "change", () => Object.values(panels).forEach((panel) => panel.again()));
    on("side", "change", () => Object.values(panels).forEach(async (panel) => (await panel.view)?.setRadiologicalConvention(find("side").value === "right")));
    for (const side of ["a", "b"]) {
      scanInput(side).addEventListener("change", (event) => pick(side, event.target.value.trim()));
      panels[side].figure.querySelector("select.kind").addEventListener("change", () => drawScan[side]());
    }
    find("width").after(" ", button("fit", () => {
      const peak = Math.max(0, ...Object.values(panels).filter((panel) => panel.now?.signed).map((panel) => panel.peak));
      if (!peak) return;
      find("width").value = Number(peak.toPrecision(2));
      find("width").dispatchEvent(new Event("change"));
    }));
    find("slider-tools").append(button("All back to the start", restart));
    find("chosen-tools").append(
      button("Mean of them", () => { find("one").value = "the chosen scans"; find("two").value = "none"; drawMean(); find("means").scrollIntoView(); }),
      button("Choose none", () => { choose(null); drawPlot(); }),
      button("Save names", () => save("chosen.txt", `${[...chosen].map((row) => study.scans[row][0]).join("\n")}\n`, "text/plain")),
    );
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawPlot);
  };
  const listenPlot = () => {
    const plot = find("plot");
    plot.on("plotly_click", (event) => {
      const row = event.points[0].customdata;
      if (row !== undefined) pick(document.querySelector('input[name="click"]:checked').value, study.scans[row][0]);
    });
    plot.on("plotly_selected", (event) => {
      if (event) choose(new Set(event.points.map((point) => point.customdata).filter((row) => row !== undefined)));
    });
    plot.on("plotly_deselect", () => { choose(null); drawPlot(); });
    plot.on("plotly_relayout", (change) => { if (change.dragmode) mode = change.dragmode; });
  };
  const fill = (id, names, at) => find(id).append(...names.map((name, number) => new Option(visible(name), number, false, number === at)));

  const begin = async () => {
    study = await (await ask("/api/study")).json();
    study.scans.forEach(([scan], row) => rows.set(scan, row));
    const size = study.shape.join(" × ");
    find("about").textContent = visible(`${study.title}: ${study.scans.length} scans of ${study.n_subjects} persons, ${study.n_training} in training, ${size} voxels of ${study.spacing_mm} mm`);
    find("caveats").append(...study.notes.map((note) => Object.assign(document.createElement("li"), { textContent: visible(note) })));
    find("scan-names").append(...study.scans.map(([scan]) => new Option("", scan)));
    fill("colour", study.columns, 0);
    fill("x", study.axes, 0);
    fill("y", study.axes, Math.min(1, study.axes.length - 1));
    find("width").value = Number((0.25 * (study.limits[1] - study.limits[0])).toPrecision(2));
    document.querySelectorAll(".panel").forEach((figure) => { panels[figure.dataset.panel] = panelOf(figure, study); });
    Object.assign(drawScan, { a: makeScan("a"), b: makeScan("b") });
    listen();
    choose(null);
    await drawPlot();
    listenPlot();
    ({ places } = await (await ask("/api/places")).json());
    const order = ["covariate", "group", "component", "latent", "pls", "discriminant"];
    const usual = study.sliders.map((_, number) => number).sort((a, b) => order.indexOf(study.sliders[a].kind) - order.indexOf(study.sliders[b].kind) || a - b);
    usual.slice(0, N_SLIDERS).forEach(addSlider);
    offerSliders();
    await drawMoved();
    document.body.dataset.ready = "yes";
  };
  begin().catch(fault);
})();

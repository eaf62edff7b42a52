"use strict";
(() => {
  const status = document.querySelector("[data-status]");
  const say = (text) => { status.textContent = text; };
  const make = (name, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(name), properties);
    element.append(...children);
    return element;
  };

  // tables: sort by a button in each head, filter by words

  const readNumber = (text) => {
    const match = /^[~<]?\s*([+-]?[\d,]*\.?\d+(?:e[+-]?\d+)?)/i.exec(text.trim());
    return match ? parseFloat(match[1].replaceAll(",", "")) : NaN;
  };
  const compareTexts = new Intl.Collator("en", { numeric: true }).compare;

  const sortRows = (table, column, ascending) => {
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => ({ row, text: row.cells[column].textContent.trim() }));
    const filled = rows.filter(({ text }) => text !== "");
    const numeric = filled.length > 0 && filled.every(({ text }) => !Number.isNaN(readNumber(text)));
    const sign = ascending ? 1 : -1;
    filled.sort((a, b) => sign * (numeric ? readNumber(a.text) - readNumber(b.text) : compareTexts(a.text, b.text)));
    const empty = rows.filter(({ text }) => text === "");
    body.append(...[...filled, ...empty].map(({ row }) => row));
  };

  const addSorting = (table) => {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const name = head.textContent;
      const button = make("button", { type: "button", textContent: name || "name" });
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const before = head.getAttribute("aria-sort");
        const ascending = before ? before === "descending" : !head.classList.contains("number");
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
        sortRows(table, column, ascending);
        say(`sorted by ${name}, ${ascending ? "ascending" : "descending"}`);
      });
    });
  };

  const addFilter = (block, table) => {
    const rows = [...table.tBodies[0].rows];
    const input = make("input", { type: "search", placeholder: "coop digits" });
    const count = make("span", { textContent: `${rows.length} rows` });
    const texts = new Map(rows.map((row) => [row, [...row.cells].map((cell) => cell.textContent).join(" ").toLowerCase()]));
    const filter = () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      rows.forEach((row) => {
        row.hidden = !words.every((word) => texts.get(row).includes(word));
        shown += row.hidden ? 0 : 1;
      });
      count.textContent = words.length ? `${shown} of ${rows.length} rows` : `${rows.length} rows`;
      say(count.textContent);
    };
    input.addEventListener("input", filter);
    block.before(make("div", { className: "filter" }, make("label", {}, "Rows with ", input), count));
  };

  document.querySelectorAll("[data-table]").forEach((block) => {
    const table = block.querySelector("table");
    if (table.tBodies[0].rows.length < 2) return;
    addSorting(table);
    if (table.tBodies[0].rows.length > 4) addFilter(block, table);
  });

  // figures: Plotly in the colours of the page

  const root = document.documentElement;
  const probe = make("span", { hidden: true });  // a property has both colours, a style the one of the theme
  document.body.append(probe);
  const read = (name) => {
    probe.style.color = `var(${name})`;
    return getComputedStyle(probe).color;
  };
  const getColours = () => ({ text: read("--text"), grid: read("--grid"), raised: read("--raised"), line: read("--line") });
  const makeTheme = (layout) => {
    const { text, grid, raised, line } = getColours();
    const theme = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", "font.color": text,
      "hoverlabel.bgcolor": raised, "hoverlabel.font.color": text, "hoverlabel.bordercolor": line,
      "modebar.color": text, "modebar.bgcolor": "rgba(0,0,0,0)",
    };
    Object.keys(layout).concat("xaxis", "yaxis").filter((key) => /^[xy]axis\d*$/.test(key)).forEach((axis) => {
      Object.assign(theme, { [`${axis}.gridcolor`]: grid, [`${axis}.zerolinecolor`]: grid, [`${axis}.linecolor`]: line });
    });
    Object.keys(layout).filter((key) => /^polar\d*$/.test(key)).forEach((polar) => {
      theme[`${polar}.bgcolor`] = "rgba(0,0,0,0)";
      ["radialaxis", "angularaxis"].forEach((axis) => {
        Object.assign(theme, { [`${polar}.${axis}.gridcolor`]: grid, [`${polar}.${axis}.linecolor`]: line });
      });
    });
    return theme;
  };
  const recolourBars = (plot, data) => {  // whose error bars would stay dark
    const bars = data.map((trace, index) => index).filter((i) => data[i].type === "bar" && data[i].error_y);
    return bars.length ? window.Plotly.restyle(plot, { "error_y.color": getColours().text }, bars) : null;
  };

  const addChoice = (plot, figure) => {
    const named = figure.data.map((trace, index) => ({ name: trace.name, index })).filter(({ name }) => name);
    if (named.length < 2) return;
    const decode = (text) => new DOMParser().parseFromString(text, "text/html").documentElement.textContent;
    const boxes = named.map(({ name, index }) => {
      const box = make("input", { type: "checkbox", checked: figure.data[index].visible !== "legendonly" });
      box.addEventListener("change", () => window.Plotly.restyle(plot, { visible: box.checked ? true : "legendonly" }, [index]));
      return make("label", {}, box, ` ${decode(name)}`);
    });
    const set = make("fieldset", { className: "traces" }, make("legend", { className: "hidden", textContent: "Shown" }), ...boxes);
    plot.after(make("details", { className: "choose" }, make("summary", { textContent: "Choose what is shown" }), set));
  };

  const draw = (plot) => {
    const figure = JSON.parse(document.getElementById(`data-${plot.dataset.plot}`).textContent);
    const picture = plot.parentElement.querySelector(".picture");
    plot.hidden = false;
    const width = plot.clientWidth;
    const height = Math.max(320, Math.min(640, width * parseFloat(plot.dataset.ratio)));
    const layout = { ...figure.layout, height, autosize: true, margin: { t: 30, r: 20, ...(figure.layout.margin || {}) } };
    const config = {
      responsive: true, displaylogo: false, showSendToCloud: false, plotlyServerURL: "",  // nothing leaves the page
      modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],  // which choose nothing here
      toImageButtonOptions: { format: "svg", filename: plot.dataset.plot },
    };
    return window.Plotly.newPlot(plot, figure.data, layout, config)
      .then(() => window.Plotly.relayout(plot, makeTheme(figure.layout)))
      .then(() => recolourBars(plot, figure.data))
      .then(() => plot.querySelectorAll("svg.main-svg").forEach((svg) => svg.setAttribute("aria-hidden", "true")))
      .then(() => { picture.hidden = true; plot.dataset.drawn = "yes"; addChoice(plot, figure); })
      .catch((error) => { plot.hidden = true; picture.hidden = false; console.error(error); });
  };

  const plots = [...document.querySelectorAll("[data-plot]")];
  if (window.Plotly && plots.length) {
    const pending = new IntersectionObserver((entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => {
      pending.unobserve(entry.target);
      draw(entry.target.querySelector("[data-plot]"));
    }), { rootMargin: "600px" });
    plots.forEach((plot) => pending.observe(plot.parentElement));
  }
  const recolour = () => plots.filter((plot) => plot.dataset.drawn).forEach((plot) => {
    window.Plotly.relayout(plot, makeTheme(plot.layout)).then(() => recolourBars(plot, plot.data));
  });

  // light and dark

  const select = make("select", {}, ...["system", "light", "dark"].map((value) => make("option", { value, textContent: value })));
  const setTheme = (value) => {
    if (value === "system") delete root.dataset.theme;
    else root.dataset.theme = value;
    recolour();
  };
  select.addEventListener("change", () => {
    setTheme(select.value);
    say(`colours: ${select.value}`);
    try { localStorage.setItem("vlprompt-report-theme", select.value); } catch { /* a page that may store nothing */ }
  });
  try {
    const stored = localStorage.getItem("vlprompt-report-theme");
    if (["light", "dark"].includes(stored)) { select.value = stored; setTheme(stored); }
  } catch { /* likewise */ }
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);
  const controls = document.querySelector("[data-controls]");
  controls.append(make("label", {}, "Colours", select));
  controls.hidden = false;
  document.querySelector("[data-no-script]").remove();

  if (window.matchMedia("(max-width: 40rem)").matches) document.querySelector("nav details").open = false;
})();

import DiffusionCore

/// Passes everything on, and keeps the seconds of every load and of every run.
public actor TimedRuntime: PackageRuntime {
  private let inner: any PackageRuntime
  private var loaded: Set<String> = []
  /// By package; the first is cold.
  private(set) var loads: [String: [Double]] = [:]
  /// By package, since the last ``forgetRuns()``.
  private(set) var runs: [String: [Double]] = [:]

  /// Times what `inner` does.
  public init(_ inner: any PackageRuntime) { self.inner = inner }

  /// So that what comes next is warm.
  func forgetRuns() { runs = [:] }

  /// Loads unless it is loaded.
  public func load(_ package: Manifest.Package) async throws {
    guard loaded.insert(package.name).inserted else { return }
    let taken = try await seconds { try await inner.load(package) }
    loads[package.name, default: []].append(taken)
  }

  /// Lets go of a package, so that the next load is timed again.
  public func unload(_ package: Manifest.Package) async {
    loaded.remove(package.name)
    await inner.unload(package)
  }

  /// Runs and keeps the seconds.
  public func run(_ package: Manifest.Package, context: Int, giving values: [String: Tensor]) async throws {
    let taken = try await seconds { try await inner.run(package, context: context, giving: values) }
    runs[package.name, default: []].append(taken)
  }

  /// A value of the inner runtime.
  public func value(_ name: String, context: Int) async throws -> Tensor {
    try await inner.value(name, context: context)
  }

  /// Lets go of everything.
  public func release() async {
    loaded = []
    await inner.release()
  }

  private func seconds(_ work: () async throws -> Void) async rethrows -> Double {
    let clock = ContinuousClock()
    let start = clock.now
    try await work()
    return (clock.now - start).inSeconds
  }
}

extension Duration {
  /// As a number.
  var inSeconds: Double { Double(components.seconds) + Double(components.attoseconds) * 1e-18 }
}

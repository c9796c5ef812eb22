#if os(Linux) || os(macOS)
  import DiffusionCore
  import Foundation

  /// Runs the packages of a bundle with `mdm serve-bundle` in a child process.
  ///
  /// For Linux and for tests. The child starts with the first `load`. It ends with `release`, with the
  /// last reference to this object, or when this process dies. Cancelling a task that waits for the
  /// child kills the child, so that a hanging child blocks nobody. From the first `load` on, the whole
  /// process ignores SIGPIPE.
  public actor PipeRuntime: PackageRuntime {
    private let executor = BlockingExecutor(label: "mdm-serve-bundle")
    private let command: [String]
    /// The digest of the bundle that it serves.
    public nonisolated let bundleDigest: String?
    private var server: ServerProcess?
    private var loaded: Set<String> = []

    /// The actor's own thread, so that waiting for the child delays nobody else.
    public nonisolated var unownedExecutor: UnownedSerialExecutor {
      executor.asUnownedSerialExecutor()
    }

    /// - Parameters:
    ///   - bundle: the bundle that the server opens; the digests are compared.
    ///   - program: the `mdm` command, with any arguments that go before `serve-bundle`.
    ///   - precision: "fp16" rounds like a device, "fp32" does not.
    public init(bundle: BundleFolder, program: [String] = ["mdm"], precision: String = "fp16") {
      command = program + ["serve-bundle", bundle.url.path, "--precision", precision]
      bundleDigest = bundle.manifest.digest
    }

    /// Starts the server if necessary, and loads a package there.
    public func load(_ package: Manifest.Package) async throws {
      if server == nil { try await start() }
      if loaded.contains(package.name) { return }
      _ = try await ask("L", Frame.text(package.name))
      loaded.insert(package.name)
    }

    /// Releases a package there.
    public func unload(_ package: Manifest.Package) async {
      guard loaded.remove(package.name) != nil else { return }
      if (try? await ask("U", Frame.text(package.name))) == nil { stop() }
    }

    /// Runs a package there.
    public func run(
      _ package: Manifest.Package, context: Int, giving values: [String: Tensor]
    ) async throws {
      let types = Dictionary(package.inputs.map { ($0.name, $0.dtype) }) { first, _ in first }
      var payload = Frame.word(UInt32(context)) + Frame.text(package.name)
      payload += [UInt8(values.count & 255), UInt8(values.count >> 8)]
      for (name, tensor) in values.sorted(by: { $0.key < $1.key }) {
        payload += Frame.tensor(name, tensor, as: types[name] ?? .fp32)
      }
      _ = try await ask("R", payload)
    }

    /// Fetches a value from the server.
    public func value(_ name: String, context: Int) async throws -> Tensor {
      var reader = FrameReader(try await ask("G", Frame.word(UInt32(context)) + Frame.text(name)))
      let (found, tensor) = try reader.tensor()
      try reader.finish()
      guard found == name else {
        throw MatryoshkaError.serverFailed(reason: "it sent \(found.prefix(64)), not \(name)")
      }
      return tensor
    }

    /// Ends the server.
    public func release() { stop() }

    private func stop() {
      server?.end()
      server = nil
      loaded = []
    }

    private func start() async throws {
      server = try ServerProcess(command)
      do {
        var reader = FrameReader(try await ask("H", [1, 0]))
        let version = try reader.number(bytes: 2)
        let found = try reader.text()
        guard version == 1, found == bundleDigest else {
          throw MatryoshkaError.serverFailed(reason: "it serves another bundle or version")
        }
      } catch {
        stop()
        throw error
      }
    }

    /// The payload of the answer to one request. Closes a broken connection.
    private func ask(_ kind: Character, _ payload: [UInt8]) async throws -> [UInt8] {
      guard let server else { throw MatryoshkaError.serverFailed(reason: "it is not running") }
      let frame = try Frame.bytes(kind, payload)
      let (answer, content): (UInt8, [UInt8])
      do {
        (answer, content) = try await withTaskCancellationHandler {
          try server.send(frame)
          return try server.receive()
        } onCancel: {
          server.kill()
        }
      } catch {
        stop()
        try Task.checkCancellation()
        throw error
      }
      switch answer {
      case UInt8(ascii: "K"), UInt8(ascii: "T"): return content
      case UInt8(ascii: "E"):
        var reader = FrameReader(content)
        throw MatryoshkaError.serverFailed(reason: try reader.text())
      default:
        stop()
        throw MatryoshkaError.serverFailed(reason: "it sent an answer of the unknown kind \(answer)")
      }
    }
  }
#endif

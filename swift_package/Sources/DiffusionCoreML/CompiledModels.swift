#if canImport(CoreML) || COREML_SHIM
  import DiffusionCore
  import Foundation

  #if COREML_SHIM
    import CoreMLShim
  #elseif canImport(CoreML)
    import CoreML
  #endif

  /// Packages compiled once on this device. Core ML caches by path the data that it derives from a
  /// compiled model, so each model keeps its path as long as bundle and system stay the same.
  public struct CompiledModels: Sendable {
    /// Compiles a package and returns the compiled model's temporary location.
    public typealias Compile = @Sendable (URL) async throws -> URL

    /// The bundle whose packages are compiled.
    public let bundle: BundleFolder
    private let base: URL
    private let precompiled: URL?
    private let folder: URL
    private let compile: Compile
    /// Shared by all copies of this value.
    private let compiling = OneAtATime()

    /// - Parameters:
    ///   - base: where the compiled models go, each bundle's in a folder of its own. Whatever else
    ///     lies there is left alone, so it may be Application Support itself.
    ///   - precompiled: a folder that `mdm-generate compile` made from this bundle, which saves the
    ///     device the work; nil: the packages are compiled here.
    ///   - system: identifies the system. A new one invalidates the compiled models.
    ///   - compile: compiles one package; `MLModel.compileModel(at:)` by default.
    public init(
      bundle: BundleFolder, base: URL, precompiled: URL? = nil,
      system: String = CompiledModels.thisSystem,
      compile: @escaping Compile = { try await MLModel.compileModel(at: $0) }
    ) {
      (self.bundle, self.base, self.compile) = (bundle, base, compile)
      self.precompiled = precompiled
      let name = system.map { $0.isLetter || $0.isNumber ? $0 : "-" }
      folder = base.appending(path: "\(Self.prefix(of: bundle))\(String(name))")
    }

    /// The system's version and build. The version string of ProcessInfo is in the user's language, so
    /// another language would compile everything again.
    public static var thisSystem: String {
      let version = ProcessInfo.processInfo.operatingSystemVersion
      let numbers = [version.majorVersion, version.minorVersion, version.patchVersion]
      let build = systemBuild()
      return (numbers.map(String.init) + (build.map { [$0] } ?? [])).joined(separator: "-")
    }

    /// The compiled model of a package, compiled now if necessary. Functions that share a package file
    /// share its compiled model. May be called for several packages at once, and by several processes.
    /// A bundle of Core AI packages is refused.
    public func url(of package: Manifest.Package) async throws -> URL {
      try bundle.check(isFor: .coreml)
      if let precompiled { return try CompiledBundle.url(of: package, of: bundle, in: precompiled) }
      let place = folder.appending(path: CompiledBundle.name(of: package))
      if FileManager.default.fileExists(atPath: place.path) { return place }
      return try await compiling.run {
        // Somebody else may have compiled it while this call waited.
        if FileManager.default.fileExists(atPath: place.path) { return place }
        try makeFolder()
        try checkDisk(package.bytes)
        let made: URL
        do {
          made = try await compile(bundle.url.appending(path: package.path))
        } catch {
          throw MatryoshkaError.packageFailed(
            package: package.name, reason: "cannot be compiled (\(error.cause))")
        }
        defer { try? FileManager.default.removeItem(at: made) }
        try Task.checkCancellation()
        try put(made, at: place)
        return place
      }
    }

    /// Moves a compiled model to its place, where it appears complete or not at all. Another process may
    /// have been faster, and then its model stays.
    private func put(_ made: URL, at place: URL) throws {
      let files = FileManager.default
      // The temporary folder may be on another disk, from where a move is a slow copy.
      let near = folder.appending(path: ".\(UUID().uuidString).partial")
      defer { try? files.removeItem(at: near) }
      do {
        try files.moveItem(at: made, to: near)
        try files.moveItem(at: near, to: place)
      } catch {
        if files.fileExists(atPath: place.path) { return }
        throw MatryoshkaError.fileSystem(path: place.path, reason: "cannot be written (\(error.cause))")
      }
    }

    /// Compiles all packages, one at a time. It can be cancelled between packages and continued later.
    ///
    /// - Parameter progress: receives the number of packages done and the total.
    public func prepare(progress: @Sendable (Int, Int) -> Void = { _, _ in }) async throws {
      let packages = bundle.manifest.packages.onePerFile
      for (index, package) in packages.enumerated() {
        progress(index, packages.count)
        try Task.checkCancellation()
        _ = try await url(of: package)
      }
      progress(packages.count, packages.count)
      removeOld()
    }

    /// Removes what was compiled from this bundle for other systems.
    private func removeOld() {
      for other in Self.folders(in: base)
      where other.lastPathComponent.hasPrefix(Self.prefix(of: bundle))
        && other.lastPathComponent != folder.lastPathComponent
      {
        try? FileManager.default.removeItem(at: other)
      }
    }

    /// Removes what was compiled from other bundles, such as those of an app's last version.
    ///
    /// Only folders that this package made are removed: their names are its own and they hold its mark.
    ///
    /// - Parameters:
    ///   - base: the folder that the compiled models lie in.
    ///   - bundles: those that are still in use.
    public static func removeOthers(in base: URL, keeping bundles: [BundleFolder]) {
      let kept = bundles.map(prefix(of:))
      for folder in folders(in: base)
      where !kept.contains(where: folder.lastPathComponent.hasPrefix) {
        try? FileManager.default.removeItem(at: folder)
      }
    }

    /// A file in every folder of compiled models, which shows that this package made the folder.
    public static let mark = "compiled-by-matryoshka-diffusion"

    private static func prefix(of bundle: BundleFolder) -> String {
      "\(bundle.manifest.digest.prefix(16))-"
    }

    /// The folders of compiled models in a base folder: a digest in the name, and the mark inside. A
    /// link is none, even if it leads to one.
    private static func folders(in base: URL) -> [URL] {
      let found = try? FileManager.default.contentsOfDirectory(
        at: base, includingPropertiesForKeys: [.isDirectoryKey, .isSymbolicLinkKey])
      return (found ?? []).filter { item in
        let values = try? item.resourceValues(forKeys: [.isDirectoryKey, .isSymbolicLinkKey])
        guard values?.isDirectory == true, values?.isSymbolicLink == false else { return false }
        let digest = item.lastPathComponent.prefix { $0 != "-" }
        return digest.count == 16 && digest.allSatisfy(\.isHexDigit)
          && FileManager.default.fileExists(atPath: item.appending(path: mark).path)
      }
    }

    private func makeFolder() throws {
      do {
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        try Data().write(to: folder.appending(path: Self.mark))
        #if canImport(Darwin)
          var values = URLResourceValues()
          values.isExcludedFromBackup = true
          var place = folder
          try place.setResourceValues(values)
        #endif
      } catch {
        throw MatryoshkaError.fileSystem(path: folder.path, reason: "cannot be made (\(error.cause))")
      }
    }

    /// A compiled model is about as large as its package; twice that must be free.
    private func checkDisk(_ bytes: Int) throws {
      let attributes = try? FileManager.default.attributesOfFileSystem(forPath: folder.path)
      guard let free = (attributes?[.systemFreeSize] as? NSNumber)?.int64Value else { return }
      guard free >= 2 * Int64(bytes) else {
        throw MatryoshkaError.fileSystem(
          path: folder.path, reason: "has \(free >> 20) MB left, but \(bytes >> 19) MB are needed")
      }
    }
  }

  /// The build of an Apple system, such as 24A335; nil elsewhere.
  private func systemBuild() -> String? {
    #if canImport(Darwin)
      var length = 0
      guard sysctlbyname("kern.osversion", nil, &length, nil, 0) == 0, length > 1 else { return nil }
      var text = [UInt8](repeating: 0, count: length)
      guard sysctlbyname("kern.osversion", &text, &length, nil, 0) == 0 else { return nil }
      return String(decoding: text.prefix { $0 != 0 }, as: UTF8.self)
    #else
      nil
    #endif
  }
#endif
